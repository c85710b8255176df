package cow

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestMap: maps and their clones hold what plain maps do, whichever is written after
// it was cloned, and what differs between two is found, whichever came from which.
func TestMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := []*Map[int]{{}}
		plain := []map[string]int{{}}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			i := rapid.IntRange(0, len(all)-1).Draw(t, "which")
			if rapid.Bool().Draw(t, "clone") {
				all, plain = append(all, all[i].Clone()), append(plain, maps.Clone(plain[i]))
				i = rapid.SampledFrom([]int{i, len(all) - 1}).Draw(t, "write to")
			}
			write(t, all[i], plain[i])
		}
		for i, m := range all {
			if got := maps.Collect(m.All()); !maps.Equal(got, plain[i]) || m.Len() != len(plain[i]) {
				t.Fatalf("%d holds %v (%d), want %v", i, got, m.Len(), plain[i])
			}
			for j := range all {
				check(t, m, all[j], plain[i], plain[j])
			}
			check(t, nil, m, nil, plain[i])
			check(t, m, nil, plain[i], nil)
		}
	})
}

func write(t *rapid.T, m *Map[int], plain map[string]int) {
	for range rapid.IntRange(0, 40).Draw(t, "writes") {
		key, v := fmt.Sprint("k", rapid.IntRange(0, 30).Draw(t, "key")), rapid.IntRange(0, 3).Draw(t, "value")
		if v == 0 {
			m.Delete(key)
			delete(plain, key)
		} else {
			m.Set(key, v)
			plain[key] = v
		}
		if got := m.Get(key); got != v {
			t.Fatalf("%s is %d, want %d", key, got, v)
		}
	}
}

func check(t *rapid.T, a, b *Map[int], x, y map[string]int) {
	var want []string
	for k := range 31 {
		if key := fmt.Sprint("k", k); x[key] != y[key] {
			want = append(want, key)
		}
	}
	got := Differing(a, b)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("found that %v differ, want %v", got, want)
	}
}

// TestNil: a nil map is an empty one, to readers.
func TestNil(t *testing.T) {
	var m *Map[int]
	for range m.All() {
		t.Error("nil holds something")
	}
	if m.Get("a") != 0 || m.Len() != 0 || Differing(m, nil) != nil {
		t.Error("nil is not empty")
	}
	c := m.Clone()
	c.Set("a", 1)
	if c.Get("a") != 1 {
		t.Error("a clone of nil cannot be written")
	}
}

// TestTogether: a map that nobody writes can be read and cloned by many at once; the
// race detector looks on.
func TestTogether(t *testing.T) {
	m := &Map[int]{}
	for i := range 100 {
		m.Set(fmt.Sprint(i), i)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			c := m.Clone()
			c.Set(fmt.Sprint(i), -1)
			if got := Differing(m, c); len(got) != 1 || m.Get(got[0]) != i || c.Len() != 100 {
				t.Errorf("%v differ", got)
			}
		})
	}
	wg.Wait()
}

// BenchmarkWrite is a clone and one write.
func BenchmarkWrite(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := &Map[int]{}
			for i := range n {
				m.Set(fmt.Sprint(i), i)
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				m = m.Clone()
				m.Set(fmt.Sprint(i%n), -i)
			}
		})
	}
}
