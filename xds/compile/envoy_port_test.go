package compile_test

import (
	"errors"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"golang.org/x/sys/unix"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// takesPort fails when a process of Envoy's own user can listen on a port that Envoy
// listens on. It has SO_REUSEPORT and SO_REUSEADDR, and tries the address itself, all
// addresses, and MPTCP beside TCP.
func takesPort(t *testing.T, port int) {
	t.Helper()
	for _, c := range []struct {
		name     string
		address  [4]byte
		protocol int
	}{
		{"the address", [4]byte{127, 0, 0, 1}, unix.IPPROTO_TCP}, {"all addresses", [4]byte{}, unix.IPPROTO_TCP},
		{"MPTCP", [4]byte{127, 0, 0, 1}, unix.IPPROTO_MPTCP}, {"MPTCP on all addresses", [4]byte{}, unix.IPPROTO_MPTCP},
	} {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, c.protocol)
		if c.protocol == unix.IPPROTO_MPTCP && (errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT)) {
			continue // this kernel has none, so nobody has
		}
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: c.address})
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listening on %s, port %d, beside Envoy: %v, want %v", c.name, port, err, syscall.EADDRINUSE)
		}
		unix.Close(fd)
	}
	// All addresses of IPv6 have those of IPv4 in them.
	if l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port))); err == nil {
		l.Close()
		t.Errorf("listening on all addresses, port %d, beside Envoy is possible", port)
	}
}

// testPortIsOurs: no other process shares a listener's port.
func testPortIsOurs(t *testing.T, r *rig) {
	takesPort(t, r.serve(t, gatewayOn+traceYAML))
}

// testPortWasShared: an Envoy that holds a listener of an earlier Penstock, with a socket
// for each worker, refuses the new one and serves on with the old; once the listener is
// gone, or the Envoy another one, it is served.
func testPortWasShared(t *testing.T, r *rig) {
	port := envoytest.FreePort(t)
	objects := func() []gateway.Object { return r.objects(t, gatewayOn+traceYAML, map[string]int{"PORT": port}) }
	r.apply(t, r.objects(t, backendUp, nil)) // no listener
	r.apply(t, objects())
	current := r.last.Get(xds.Listener, "default/edge/http")
	r.apply(t, r.objects(t, backendUp, nil))

	l := &listenerv3.Listener{}
	if err := current.Body.UnmarshalTo(l); err != nil {
		t.Fatal(err)
	}
	l.EnableReusePort, l.ConnectionBalanceConfig = nil, nil
	old, err := xds.NewResource(xds.Listener, current.Name, l, current.Refs, current.Owners)
	if err != nil {
		t.Fatal(err)
	}
	r.revision++
	r.snapshot = policies.Model().Build(r.snapshot, r.revision, gateway.Changes{Updates: objects()})
	g, _ := r.compiler.Compile(compile.Input{Snapshot: r.snapshot, View: r.view, Previous: r.last})
	earlier := g.Clone()
	earlier.Set(old)
	r.server.Update(r.view.String(), earlier)
	r.open(t, port)

	r.revision++
	g = g.Clone()
	g.Revision = r.revision
	r.server.Update(r.view.String(), g)
	rep, err := r.server.Wait(t.Context(), r.revision, nil)
	if len(rep.Problems) != 1 || !strings.Contains(rep.Problems[0].Detail, "reuse port cannot be changed") {
		t.Errorf("%+v (%v), want a refusal of the listener", rep.Problems, err)
	}
	if a := r.do(t, port, "GET", "x.test/x"); a.status != 200 {
		t.Errorf("meanwhile: %d", a.status)
	}
	r.last = g
	r.apply(t, r.objects(t, backendUp, nil))
	r.apply(t, objects())
	takesPort(t, port)
}
