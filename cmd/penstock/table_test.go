package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// TestTable compares what a table is at terminals of several widths with what goes elsewhere.
func TestTable(t *testing.T) {
	show := func(w io.Writer) {
		table(w, "NAME STATE REASON", func(row func(...any)) {
			row("projects/default/routes/catalog", "serving", "")
			row("é", 7, "the proxy does not take it, because there is no backend of that name")
		})
	}
	for columns, want := range map[uint16]string{
		0:   "NAME                             STATE    REASON\nprojects/default/routes/catalog  serving  -\né                                7        the proxy does not take it, because there is no backend of that name\n",
		200: "NAME                             STATE    REASON\nprojects/default/routes/catalog  serving  -\né                                7        the proxy does not take it, because there is no backend of that name\n",
		80:  "NAME                             STATE    REASON\nprojects/default/routes/catalog  serving  -\né                                7        the proxy does not take it, because t…\n",
		40:  "NAME            STATE    REASON\nprojects/defa…  serving  -\né               7        the proxy doe…\n",
		// No column is narrower than its header.
		10: "NAME  STATE  REASON\npro…  serv…  -\né     7      the p…\n",
	} {
		if got := atTerminal(t, columns, show); got != want {
			t.Errorf("%d columns:\n%s\nwant\n%s", columns, got, want)
		}
	}
	var whole bytes.Buffer
	show(&whole)
	if strings.Contains(whole.String(), "…") {
		t.Errorf("cut although it is no terminal:\n%s", whole.String())
	}
}

// atTerminal returns what show writes to a terminal of a width.
func atTerminal(t *testing.T, columns uint16, show func(w io.Writer)) string {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(slave, &pty.Winsize{Rows: 25, Cols: columns}); err != nil {
		t.Fatal(err)
	}
	said := make(chan string)
	go func() {
		b, _ := io.ReadAll(master) // it ends with EIO when the other side is closed
		said <- string(b)
	}()
	show(slave)
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	return strings.ReplaceAll(<-said, "\r\n", "\n")
}
