// Command vuln reads the JSON of govulncheck and judges it: a vulnerable function of a
// module that the code calls is an error, since another version of the module mends it.
// One of the standard library is told: the Go installation mends that, not this
// repository. See https://pkg.go.dev/golang.org/x/vuln/cmd/govulncheck.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// message is what matters here of golang.org/x/vuln's internal/govulncheck.Message.
type message struct {
	OSV *struct {
		ID, Summary string
	}
	Finding *struct {
		OSV          string
		FixedVersion string `json:"fixed_version"`
		// Trace begins with what is vulnerable; without a function nothing calls it.
		Trace []struct{ Module, Version, Function string }
	}
}

func main() {
	lines, bad, err := judge(os.Stdin)
	for _, l := range lines {
		fmt.Println(l)
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "vuln:", err)
		os.Exit(2)
	case bad > 0:
		fmt.Fprintf(os.Stderr, "vuln: %d vulnerabilities in modules; update them\n", bad)
		os.Exit(1)
	}
}

// judge returns a line for each vulnerability that is called, sorted, and how many of
// them are of modules.
func judge(r io.Reader) (lines []string, bad int, err error) {
	summaries, seen, read := map[string]string{}, map[string]bool{}, 0
	for d := json.NewDecoder(r); ; read++ {
		var m message
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, 0, fmt.Errorf("the output of govulncheck: %w", err)
		}
		if m.OSV != nil {
			summaries[m.OSV.ID] = m.OSV.Summary
		}
		f := m.Finding
		if f == nil || len(f.Trace) == 0 || f.Trace[0].Function == "" || seen[f.OSV+f.Trace[0].Module] {
			continue
		}
		seen[f.OSV+f.Trace[0].Module] = true
		where, what := f.Trace[0].Module, "error"
		if where == "stdlib" {
			where, what = "Go's standard library", "note"
		} else {
			bad++
		}
		lines = append(lines, fmt.Sprintf("%s: %s: %s %s: %s; mended in %s", what, f.OSV, where, f.Trace[0].Version, summaries[f.OSV], or(f.FixedVersion, "no version yet")))
	}
	if read == 0 {
		return nil, 0, errors.New("govulncheck printed nothing")
	}
	slices.Sort(lines)
	return lines, bad, nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
