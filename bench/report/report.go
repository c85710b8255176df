// Package report collects the figures of a benchmark, prints them as a table and
// writes bench/results/NAME.json.
package report

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figure is one measured value.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	// Target is the bound, in words; empty when there is none yet.
	Target string `json:"target,omitempty"`
	// Pass says whether the target is met; absent without one.
	Pass *bool `json:"pass,omitempty"`
	// Note says why there is no value.
	Note string `json:"note,omitempty"`
	// Spread is the lowest and highest of several rounds.
	Spread []float64 `json:"spread,omitempty"`
}

// Report is the figures of one run.
type Report struct {
	Date    time.Time `json:"date"`
	Machine string    `json:"machine"`
	Figures []Figure  `json:"figures"`
}

// New describes the machine; the figures are added later.
func New() *Report { return &Report{Date: time.Now().UTC(), Machine: machine()} }

// Add adds a figure without a target.
func (r *Report) Add(name, unit string, value float64) {
	r.Figures = append(r.Figures, Figure{Name: name, Value: value, Unit: unit})
}

// AddNote adds a figure that could not be had, and why.
func (r *Report) AddNote(name, note string) {
	r.Figures = append(r.Figures, Figure{Name: name, Note: note})
}

// AddTarget adds a figure with its bound, in words, and whether it is met.
func (r *Report) AddTarget(name, unit string, value float64, target string, pass bool) {
	r.Add(name, unit, value)
	r.Judge(target, pass)
}

// Judge gives the figure that was added last a bound, in words, and says whether
// it is met.
func (r *Report) Judge(target string, pass bool) {
	f := &r.Figures[len(r.Figures)-1]
	f.Target, f.Pass = target, &pass
}

// AddRounds adds the median of several rounds with their spread.
func (r *Report) AddRounds(name, unit string, rounds []float64) {
	s := slices.Sorted(slices.Values(rounds))
	r.Figures = append(r.Figures, Figure{Name: name, Value: Quantile(s, 0.5), Unit: unit, Spread: []float64{s[0], s[len(s)-1]}})
}

// Quantile of sorted values, by the nearest rank.
func Quantile(sorted []float64, q float64) float64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// Write prints the table and writes the file.
func (r *Report) Write(w io.Writer, path string) error {
	fmt.Fprintf(w, "%s, %s\n", r.Machine, r.Date.Format(time.RFC3339))
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "figure\tvalue\tunit\tlowest\thighest\ttarget\t")
	for _, f := range r.Figures {
		low, high := "", ""
		if len(f.Spread) == 2 {
			low, high = number(f.Spread[0]), number(f.Spread[1])
		}
		if f.Note != "" {
			fmt.Fprintf(t, "%s\t\t\t\t\t%s\t\n", f.Name, f.Note)
			continue
		}
		target := f.Target
		if f.Pass != nil && !*f.Pass {
			target += " BEHIND"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", f.Name, number(f.Value), f.Unit, low, high, target)
	}
	t.Flush()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// number has four digits, and no exponent where people read on.
func number(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// machine is cores, processor, memory and kernel: what a reader needs to compare.
func machine() string {
	parts := []string{fmt.Sprintf("%d cores", runtime.NumCPU())}
	if v := fieldOf("/proc/cpuinfo", "model name"); v != "" {
		parts = append(parts, v)
	}
	if v := fieldOf("/proc/meminfo", "MemTotal"); v != "" {
		parts = append(parts, v+" memory")
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		parts = append(parts, "load "+strings.Fields(string(b))[0]+" at start")
	}
	return strings.Join(append(parts, runtime.GOOS+"/"+runtime.GOARCH, runtime.Version()), ", ")
}

func fieldOf(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
