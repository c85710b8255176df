package audit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

type memory struct {
	mu     sync.Mutex
	values map[string][]byte
}

func (m *memory) PutState(_ context.Context, key string, value []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = value
	return nil
}

func (m *memory) State(context.Context, string) (map[string][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.values), nil
}

func open(t *testing.T, dir string, m *memory) *Log {
	t.Helper()
	l, err := Open(t.Context(), dir, m, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// write makes a log of n records and closes it.
func write(t *testing.T, dir string, m *memory, n int) {
	t.Helper()
	l := open(t, dir, m)
	for i := range n {
		if err := l.Append(Record{Identity: "local:ann", Action: fmt.Sprint("call ", i), Verdict: "allowed", Objects: []Object{{Name: "projects/default/routes/a", After: "x"}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func verify(t *testing.T, dir string, m *memory) Report {
	t.Helper()
	l := open(t, dir, m)
	defer l.Close()
	r, err := l.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTampering: whatever is done to the file, the first record that is not as it
// was written is named, also after the control plane has gone on writing.
func TestTampering(t *testing.T) {
	lines := func(b []byte) [][]byte { return bytes.SplitAfter(b, []byte("\n")) }
	for name, c := range map[string]struct {
		do     func([]byte) []byte
		broken int64
		says   string
	}{
		"nothing":         {func(b []byte) []byte { return b }, 0, ""},
		"a byte flipped":  {func(b []byte) []byte { return bytes.Replace(b, []byte("call 4"), []byte("call 9"), 1) }, 5, "was changed"},
		"a field added":   {func(b []byte) []byte { return bytes.Replace(b, []byte(`"number":3,`), []byte(`"number":3,"x":1,`), 1) }, 3, "was changed"},
		"a line of trash": {func(b []byte) []byte { return bytes.Replace(b, []byte(`{"number":3,`), []byte(`"number":3,`), 1) }, 3, "cannot be read"},
		"one removed":     {func(b []byte) []byte { return bytes.Join(append(lines(b)[:3], lines(b)[4:]...), nil) }, 4, "4 to 4 are missing"},
		"two swapped":     {func(b []byte) []byte { l := lines(b); l[3], l[4] = l[4], l[3]; return bytes.Join(l, nil) }, 4, "missing"},
		"the tail cut":    {func(b []byte) []byte { return bytes.Join(lines(b)[:7], nil) }, 8, "8 to 10 are missing"},
		"all removed":     {func([]byte) []byte { return nil }, 1, "1 to 10 are missing"},
		"the head cut":    {func(b []byte) []byte { return bytes.Join(lines(b)[2:], nil) }, 1, "1 to 2 are missing"},
		"half a line":     {func(b []byte) []byte { return append(b, `{"number":11,"ti`...) }, 0, ""},
	} {
		dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
		write(t, dir, m, 10)
		files, err := filepath.Glob(filepath.Join(dir, "audit-*"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		b, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(files[0], c.do(b), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if r := verify(t, dir, m); r.Broken != c.broken || !strings.Contains(r.Problem, c.says) {
				t.Errorf("%s: %+v, want record %d and %q", name, r, c.broken, c.says)
			}
			write(t, dir, m, 2)
		}
	}
}

// TestForgedEnd: an end that fits the chain, but is not what the store knows.
func TestForgedEnd(t *testing.T) {
	dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
	write(t, dir, m, 4)
	known := maps.Clone(m.values)
	other := &memory{values: map[string][]byte{}}
	forged := t.TempDir()
	write(t, forged, other, 5)
	from, _ := filepath.Glob(filepath.Join(forged, "audit-*"))
	to, _ := filepath.Glob(filepath.Join(dir, "audit-*"))
	b, err := os.ReadFile(from[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir, &memory{values: known})
	defer l.Close()
	if r, err := l.Verify(t.Context()); err != nil || r.Broken == 0 {
		t.Errorf("%+v %v", r, err)
	}
	said, err := l.List(1, func(r *Record) bool { return r.Verdict == "failed" })
	if err != nil || len(said) != 1 || !strings.Contains(said[0].Reason, "record 4 is not the one that the store knows") {
		t.Errorf("%v %v", said, err)
	}
}

// TestRotation: the log is bounded, and what is left of it is a whole chain.
func TestRotation(t *testing.T) {
	dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
	l := open(t, dir, m)
	l.segment, l.kept = 2000, 3
	for range 200 {
		if err := l.Append(Record{Action: "call", Verdict: "allowed"}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := l.Verify(t.Context())
	if err != nil || r.Broken != 0 || r.Last != 200 || r.First < 100 {
		t.Errorf("%+v %v", r, err)
	}
	if all, _ := l.segments(); len(all) > 4 {
		t.Errorf("%d segments are kept", len(all))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(dir, "audit-*"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(all[0]); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, dir, m); r.Broken != r.First {
		t.Errorf("without the oldest segment: %+v", r)
	}
}

// TestConcurrent: records of many writers make one chain, and those that were
// answered are there after the log is opened again.
func TestConcurrent(t *testing.T) {
	dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
	l := open(t, dir, m)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				if err := l.Append(Record{Identity: fmt.Sprint(i), Action: "call", Verdict: "allowed"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	// Not closed: the process died.
	if r := verify(t, dir, m); r.Broken != 0 || r.Last != 160 {
		t.Errorf("%+v", r)
	}
	got, err := l.List(5, func(r *Record) bool { return r.Identity == "3" })
	if err != nil || len(got) != 5 {
		t.Errorf("%v %v", got, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestDiskTrouble: a record that cannot be written is an error, and Ready tells until
// one can be written again.
func TestDiskTrouble(t *testing.T) {
	dir, m := t.TempDir(), &memory{values: map[string][]byte{}}
	l := open(t, dir, m)
	good := l.file
	closed, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	l.file = closed
	if err := l.Append(Record{Action: "call", Verdict: "allowed"}); err == nil {
		t.Error("a record that cannot be written is not an error")
	}
	if err := l.Ready(); err == nil {
		t.Error("the log says that it is ready")
	}
	l.file = good
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if r, err := l.Verify(t.Context()); err != nil || r.Broken != 0 || r.Last != 1 {
		t.Errorf("%+v %v", r, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
