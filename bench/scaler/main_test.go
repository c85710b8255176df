package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock-gateway/penstock/bench/report"
)

// TestShort runs the benchmark with one seed. The simulation is exact for a seed, so
// unlike a timing its targets can be judged.
func TestShort(t *testing.T) {
	out := filepath.Join(t.TempDir(), "scaler.json")
	if err := run(out, 1); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	judged := 0
	for _, f := range r.Figures {
		if f.Pass == nil {
			continue
		}
		judged++
		if !*f.Pass {
			t.Errorf("%s is %g, want %s", f.Name, f.Value, f.Target)
		}
	}
	if judged != 2*(3*4+2) {
		t.Errorf("%d figures are judged", judged)
	}
}
