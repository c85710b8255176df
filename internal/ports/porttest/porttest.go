// Package porttest gives tests ports that stay free.
package porttest

import (
	"net"
	"strconv"
	"testing"

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
