package instance

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// records are what an output logged.
type records struct {
	mu  sync.Mutex
	all []map[string]any
}

func (r *records) Write(b []byte) (int, error) {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, m)
	return len(b), nil
}

func newTestOutput(t *testing.T, copies ...string) (*output, *records, *os.File) {
	t.Helper()
	r := &records{}
	o := newOutput(slog.New(slog.NewJSONHandler(r, nil)), nil, copies...)
	w, err := o.pipe("stdout")
	if err != nil {
		t.Fatal(err)
	}
	o.start()
	return o, r, w
}

// TestOutputNames: files of a copy of the source have the names that they have in the source,
// in the log and among the last lines, also in one that has no end.
func TestOutputNames(t *testing.T) {
	o, r, w := newTestOutput(t, "/cache/builds/1/src", "/cache/packages/2/src")
	fmt.Fprint(w, "File \"/cache/builds/1/src/app.py\", line 1, in /usr/lib/x.py\n/cache/packages/2/src/a/b.py:2")
	w.Close()
	o.close(time.Minute)
	if last := o.lastLines(); len(r.all) != 2 || r.all[0]["msg"] != `File "app.py", line 1, in /usr/lib/x.py` || r.all[1]["msg"] != "a/b.py:2" || !strings.HasSuffix(last, "\na/b.py:2") {
		t.Errorf("records %v, last lines %q", r.all, last)
	}
}

// TestOutputOf: each line belongs to the request that was the current one when it
// was printed, also when nobody has read it by then.
func TestOutputOf(t *testing.T) {
	o, r, w := newTestOutput(t)
	const requests = 200
	for i := range requests {
		o.of(fmt.Sprint(i))
		fmt.Fprintf(w, "line of %d\n", i)
	}
	w.Close()
	o.close(time.Minute)
	if len(r.all) != requests {
		t.Fatalf("%d records, want %d", len(r.all), requests)
	}
	for i, m := range r.all {
		if m["msg"] != fmt.Sprintf("line of %d", i) || m["request_id"] != fmt.Sprint(i) {
			t.Errorf("record %d: %v", i, m)
		}
	}
}

func TestOutputLines(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"lines":          {"a\nb\n", []string{"a", "b"}},
		"no end":         {"a\nb", []string{"a", "b"}},
		"empty line":     {"\na\n", []string{"", "a"}},
		"windows":        {"a\r\nb\r\n", []string{"a", "b"}},
		"python's trace": {"[ERROR] ValueError\rTraceback\r  File\n", []string{"[ERROR] ValueError\nTraceback\n  File"}},
		"long":           {strings.Repeat("x", maxLine+3) + "\n", []string{strings.Repeat("x", maxLine), "xxx"}},
		"just fits":      {strings.Repeat("x", maxLine) + "\ny\n", []string{strings.Repeat("x", maxLine), "y"}},
		"not UTF-8":      {"\xff\n", []string{"\ufffd"}},
	} {
		t.Run(name, func(t *testing.T) {
			o, r, w := newTestOutput(t)
			if _, err := w.WriteString(c.in); err != nil {
				t.Fatal(err)
			}
			w.Close()
			o.close(time.Minute)
			var got []string
			for _, m := range r.all {
				got = append(got, m["msg"].(string))
			}
			if strings.Join(got, "|") != strings.Join(c.want, "|") {
				t.Errorf("%.100q, want %.100q", got, c.want)
			}
		})
	}
}

// TestOutputFlood: what is beyond the rate is counted, not logged, and the last
// lines are still known.
func TestOutputFlood(t *testing.T) {
	o, r, w := newTestOutput(t)
	now := time.Unix(1, 0)
	o.now = func() time.Time { return now }
	const lines = 3 * linesBurst
	for i := range lines {
		fmt.Fprintf(w, "line %d\n", i)
	}
	w.Close()
	o.close(time.Minute)
	if n := len(r.all); n != linesBurst+1 {
		t.Errorf("%d records, want the burst of %d and one that counts the rest", n, linesBurst)
	}
	if last := r.all[len(r.all)-1]; last["lines"] != float64(lines-linesBurst) || last["bytes"].(float64) <= 0 {
		t.Errorf("the last record is %v", last)
	}
	tail := strings.Split(o.lastLines(), "\n")
	if len(tail) != tailLines || tail[tailLines-1] != fmt.Sprintf("line %d", lines-1) {
		t.Errorf("last lines %q", tail)
	}
}

// TestOutputHeldOpen: a process that is not ours any more and holds the pipe does
// not hold us.
func TestOutputHeldOpen(t *testing.T) {
	o, r, w := newTestOutput(t)
	defer w.Close()
	fmt.Fprint(w, "unfinished")
	o.of("x") // all that is there has been read
	o.close(0)
	if len(r.all) != 1 || r.all[0]["msg"] != "unfinished" {
		t.Errorf("%v", r.all)
	}
}

func TestBucket(t *testing.T) {
	b := bucket{rate: 10, burst: 5, level: 5}
	now := time.Unix(1, 0)
	for range 5 {
		if !b.has(now, 1) {
			t.Fatal("the burst is not all there")
		}
		b.take(1)
	}
	if b.has(now, 1) {
		t.Error("more than the burst")
	}
	now = now.Add(100 * time.Millisecond)
	if !b.has(now, 1) || b.has(now, 2) {
		t.Errorf("after a tenth of a second the level is %v, want 1", b.level)
	}
	if now = now.Add(time.Hour); !b.has(now, 5) || b.has(now, 6) {
		t.Error("it does not fill to the burst")
	}
}
