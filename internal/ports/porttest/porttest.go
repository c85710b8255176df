// Package porttest gives tests ports that stay free.
package porttest

import (
	"errors"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/ports"
)

// Free is ports.Reserve.
func Free(t testing.TB) int {
	t.Helper()
	port, err := ports.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Address is 127.0.0.1 with a Free port.
func Address(t testing.TB) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(Free(t)))
}

// Listen listens on an address that this process may have listened on before. That is free
// again only when no child has the socket that was closed, which each child has for the
// moment from its fork until its exec: it is waited for.
func Listen(t testing.TB, address string) net.Listener {
	t.Helper()
	begin := time.Now()
	for {
		l, err := net.Listen("tcp", address)
		if err == nil {
			return l
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(begin) > time.Minute {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}
