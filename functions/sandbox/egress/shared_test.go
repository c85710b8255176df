package egress

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestShared: one sandbox that takes all the connections that it can leaves enough to
// others, and gives back what it had.
func TestShared(t *testing.T) {
	all := newShared(0) // 16 places
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	type sandbox struct {
		*Server
		address string
		mu      sync.Mutex
		why     []string
	}
	start := func() *sandbox {
		b := &sandbox{}
		b.Server = newServer(Policy{Refused: func(_ netip.AddrPort, why string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.why = append(b.why, why)
		}}, all)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		b.address = l.Addr().String()
		b.Forward(l, netip.MustParseAddrPort(target.Addr().String()))
		t.Cleanup(b.Close)
		return b
	}
	// dial is a connection by way of a sandbox; nil when it is refused.
	dial := func(b *sandbox) (in, out net.Conn) {
		t.Helper()
		in, err := net.Dial("tcp", b.address)
		if errors.Is(err, syscall.ECONNRESET) {
			return nil, nil // so soon
		}
		if err != nil {
			t.Fatal(err)
		}
		met := make(chan net.Conn, 1)
		go func() {
			c, _ := target.Accept()
			met <- c
		}()
		refused := make(chan struct{})
		go func() {
			defer close(refused)
			_, _ = in.Read(make([]byte, 1))
		}()
		select {
		case out := <-met:
			return in, out
		case <-refused:
			in.Close()
			other, err := net.Dial("tcp", target.Addr().String()) // ends the Accept above
			if err != nil {
				t.Fatal(err)
			}
			other.Close()
			<-met
			return nil, nil
		}
	}
	greedy := start()
	first, firstOut := dial(greedy)
	for n := range 3 {
		if in, _ := dial(greedy); in == nil {
			t.Fatalf("connection %d is refused", n+2)
		}
	}
	if in, _ := dial(greedy); in != nil {
		t.Error("one sandbox has more than a quarter")
	}
	for range 3 {
		other := start()
		for n := range 4 {
			if in, _ := dial(other); in == nil {
				t.Fatalf("connection %d of another sandbox is refused: %q", n+1, other.why)
			}
		}
	}
	last := start()
	if in, _ := dial(last); in != nil {
		t.Error("there are more connections than places")
	}
	last.mu.Lock()
	if len(last.why) != 1 || !strings.Contains(last.why[0], "of all functions") {
		t.Errorf("%q", last.why)
	}
	last.mu.Unlock()
	first.Close()
	firstOut.Close()
	for range 4 { // the place is free when both ways have ended: waiting for it is waiting for a place
		all.connections <- struct{}{}
		<-all.connections
	}
	if in, _ := dial(last); in == nil {
		t.Error("a place that was given back is not there")
	}
}

// TestOfProcess: the places are as many as this process may open descriptors for.
func TestOfProcess(t *testing.T) {
	if n := cap(newShared(4096).connections); n != 256 {
		t.Errorf("%d places for 4096 descriptors", n)
	}
	s := newServer(Policy{}, newShared(1<<20))
	defer s.Close()
	if cap(s.room) != MaxConnections || cap(s.questions) != maxQuestions {
		t.Errorf("%d and %d places of one sandbox", cap(s.room), cap(s.questions))
	}
}
