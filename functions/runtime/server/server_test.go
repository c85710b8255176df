package server

import "testing"

// TestPorts: no port is given to two instances at once.
func TestPorts(t *testing.T) {
	p := portPool{taken: map[int]bool{}}
	seen := map[int]bool{}
	for range 200 {
		port, err := p.take()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] {
			t.Fatalf("port %d twice", port)
		}
		seen[port] = true
	}
	for port := range seen {
		p.give(port)
	}
	if len(p.taken) > 0 {
		t.Errorf("still taken: %v", p.taken)
	}
}
