package ports

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"syscall"
)

var (
	mu sync.Mutex
	// tokens are the ports that this process has reserved.
	tokens = map[int]net.PacketConn{}
)

// Reserve returns a TCP port of 127.0.0.1 that is free now and that no other caller, of this
// process or another, was given, for tests and benchmarks: what listens late or again, and
// processes that are told where to listen. It lies below the range that the kernel takes
// ports of outgoing connections, and those that are asked for as 0, from: nobody takes it by
// chance, also while nobody listens on it.
func Reserve() (int, error) {
	mu.Lock()
	defer mu.Unlock()
	for range 1000 {
		port := 16000 + rand.IntN(16000)
		if tokens[port] != nil {
			continue
		}
		// Another process may choose at this moment, too. The socket that tells it so is for
		// UDP and on an address of its own, so that it is in nobody's way, and is open until
		// this process ends.
		token, err := net.ListenPacket("udp", net.JoinHostPort("127.254.254.254", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if !free(port) {
			token.Close()
			continue
		}
		tokens[port] = token
		return port, nil
	}
	return 0, errors.New("ports: found no free one from 16000 to 31999")
}

// free reports whether nobody listens on a port of 127.0.0.1.
func free(port int) bool {
	// A child that is started meanwhile would have the socket until its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return false
	}
	return l.Close() == nil
}
