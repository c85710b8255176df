package main

import (
	"slices"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	const osv = `{"osv": {"id": "GO-1", "summary": "first"}} {"osv": {"id": "GO-2", "summary": "second"}} `
	for name, test := range map[string]struct {
		in    string
		lines []string
		bad   int
	}{
		"nothing is called": {osv + `{"finding": {"osv": "GO-1", "trace": [{"module": "example.com/m", "version": "v1.0.0"}]}}`, nil, 0},
		"a module": {
			osv + strings.Repeat(`{"finding": {"osv": "GO-1", "fixed_version": "v1.0.1", "trace": [{"module": "example.com/m", "version": "v1.0.0", "function": "F"}]}}`, 2),
			[]string{"error: GO-1: example.com/m v1.0.0: first; mended in v1.0.1"}, 1,
		},
		"the standard library": {
			osv + `{"finding": {"osv": "GO-2", "trace": [{"module": "stdlib", "version": "v1.26.0", "function": "F"}]}}`,
			[]string{"note: GO-2: Go's standard library v1.26.0: second; mended in no version yet"}, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			lines, bad, err := judge(strings.NewReader(test.in))
			if err != nil || bad != test.bad || !slices.Equal(lines, test.lines) {
				t.Errorf("%q, %d, %v", lines, bad, err)
			}
		})
	}
	for _, in := range []string{"", "{", "no JSON"} {
		if _, _, err := judge(strings.NewReader(in)); err == nil {
			t.Errorf("%q: no error", in)
		}
	}
}
