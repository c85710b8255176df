package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/scale/sim"
)

func replay(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	c := newFnReplayCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetOut(&out)
	c.SetErr(&out)
	c.SetArgs(args)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFnReplay(t *testing.T) {
	out, err := replay(t, "onoff", "--seeds", "2")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"objective p99 <= 400ms", "mean of 2 seeds", "SCALER", "latency", "kpa-60s", "kpa-10s", "1.00", "+-"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	log := filepath.Join(t.TempDir(), "access.csv")
	var b strings.Builder
	b.WriteString("time,duration_ms\n")
	for range 300 {
		b.WriteString("2026-11-24T19:00:00Z,20\n2026-11-24T19:00:02.5Z,30\n")
	}
	if err := os.WriteFile(log, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err = replay(t, log, "--seeds", "1", "-o", "json", "--concurrency", "10", "--start", "100ms"); err != nil {
		t.Fatal(err)
	}
	var rows []sim.Row
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 3 || rows[0].Requests != 600 || rows[0].P99.Mean <= 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestFnReplayErrors(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.csv")
	if err := os.WriteFile(log, []byte("time,duration\n1,2s\n2,fast\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		`"rush" is neither a made trace (spikes, burst, onoff, diurnal, steady) nor a file`: {"rush"},
		`access.csv: line 3: duration "fast"`:                                               {log},
		"--service is for made traces":                                                      {log, "--service", "1s"},
		`--objective: objective "quick"`:                                                    {"steady", "--objective", "quick"},
		"--objective is empty":                                                              {"steady", "--objective", ""},
		"--concurrency 0 is not between 1 and 10000":                                        {"steady", "--concurrency", "0"},
		"--min 5 is not between 0 and 2":                                                    {"steady", "--max", "2", "--min", "5"},
		"--seeds 0 is not between":                                                          {"steady", "--seeds", "0"},
		"--start 0s is not between":                                                         {"steady", "--start", "0s"},
		"--rest -1s is not between":                                                         {"steady", "--rest", "-1s"},
		`--output "xml" is none of text, json`:                                              {"steady", "-o", "xml"},
	} {
		if _, err := replay(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	// All problems at once.
	if _, err := replay(t, "steady", "--seeds", "0", "--max", "0"); err == nil || !strings.Contains(err.Error(), "--seeds") || !strings.Contains(err.Error(), "--max") {
		t.Errorf("%v", err)
	}
}
