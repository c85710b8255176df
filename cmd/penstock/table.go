package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode/utf8"

	"github.com/penstock-gateway/penstock/telemetry"
)

// tableGap is the number of blanks between two columns.
const tableGap = 2

// table prints rows in columns. At a terminal the widest cells are cut so that a row is a
// line; what goes elsewhere is whole.
func table(w io.Writer, header string, rows func(row func(cells ...any))) {
	lines := [][]string{strings.Split(header, " ")}
	rows(func(cells ...any) {
		line := make([]string, len(cells))
		for i, c := range cells {
			if line[i] = fmt.Sprint(c); line[i] == "" {
				line[i] = "-"
			}
		}
		lines = append(lines, line)
	})
	if columns := telemetry.Columns(w); columns > 0 {
		fit(lines, columns)
	}
	t := tabwriter.NewWriter(w, 0, 8, tableGap, ' ', 0)
	for _, line := range lines {
		fmt.Fprintln(t, strings.Join(line, "\t"))
	}
	t.Flush()
}

// fit cuts cells, the longest first, until each line has room in columns, or nothing is
// left to cut but the header, which is the first line.
func fit(lines [][]string, columns int) {
	widths := make([]int, len(lines[0]))
	longest := 0
	for _, line := range lines {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			longest = max(longest, widths[i])
		}
	}
	bound := func(i, limit int) int {
		return min(widths[i], max(limit, utf8.RuneCountInString(lines[0][i])))
	}
	total := func(limit int) int {
		n := tableGap * (len(widths) - 1)
		for i := range widths {
			n += bound(i, limit)
		}
		return n
	}
	limit := longest
	for limit > 1 && total(limit) > columns {
		limit--
	}
	for _, line := range lines[1:] {
		for i, cell := range line {
			line[i] = cut(cell, bound(i, limit))
		}
	}
}

// cut shortens a text to a number of characters, of which the last says that it is cut.
func cut(text string, most int) string {
	r := []rune(text)
	if len(r) <= most {
		return text
	}
	return string(r[:most-1]) + "…"
}
