package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// NetworkMode is which network a program has.
type NetworkMode int

const (
	// Outbound: it reaches other hosts by TCP, and name servers, but nothing that
	// listens on this machine.
	Outbound NetworkMode = iota
	// NoNetwork: nothing but itself.
	NoNetwork
	// HostNetwork: it has the machine's network.
	HostNetwork
)

// Network is what a program may reach.
type Network struct {
	Mode NetworkMode
	// Allow are services of this machine that it may reach all the same: a loopback
	// address or another of the machine, and a port.
	Allow []netip.AddrPort
	// Refused hears of connections that are not made; nil: nobody does. It is called
	// from several goroutines.
	Refused func(to netip.AddrPort, why string)
}

// ParseAllow reads entries of Network.Allow, "host:port", where host is an IP address
// or "localhost", which is 127.0.0.1 and ::1.
func ParseAllow(entries []string) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	var wrong []error
	for _, e := range entries {
		hosts := []string{e}
		if port, ok := strings.CutPrefix(e, "localhost:"); ok {
			hosts = []string{"127.0.0.1:" + port, "[::1]:" + port}
		}
		for _, h := range hosts {
			a, err := netip.ParseAddrPort(h)
			if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
				wrong = append(wrong, fmt.Errorf("%q is not a valid address of a service: write IP:port or localhost:port, such as 127.0.0.1:5432", e))
				break
			}
			out = append(out, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
	}
	return out, errors.Join(wrong...)
}

// network decides which network instances get. Its error is for the function's author.
func (p *Plan) network() error {
	n, m := p.policy.Network, p.machine
	switch {
	case n.Mode == HostNetwork && len(n.Allow) > 0:
		return errors.New("isolation.network_allow has no effect with network HOST, which reaches all: remove one of them")
	case n.Mode == HostNetwork:
		return nil
	case p.policy.Level == None && n.Mode == NoNetwork:
		return errors.New("isolation.network is NONE, but level NONE is a plain process with the machine's network: remove the level")
	case p.policy.Level == None && len(n.Allow) > 0:
		return errors.New("isolation.network_allow has no effect with level NONE, a plain process with the machine's network: remove one of them")
	case p.policy.Level == None:
		return nil
	}
	if !m.private {
		if n.Mode == NoNetwork {
			return fmt.Errorf("isolation.network is NONE, but this machine offers no network of its own for a function: %s", strings.Join(m.lacksOf(MeansNetwork), "; "))
		}
		return nil
	}
	p.private, p.outbound = true, n.Mode == Outbound && m.outbound
	if slices.ContainsFunc(n.Allow, func(a netip.AddrPort) bool {
		return a.Addr().IsLoopback() && (a.Port() == ServerPort || a.Port() == runtimePort)
	}) {
		return fmt.Errorf("isolation.network_allow: the ports %d and %d of the loopback are those of the function itself", ServerPort, runtimePort)
	}
	return nil
}

// Ports on the loopback interface of an instance that has a network of its own.
const (
	// ServerPort is its PORT.
	ServerPort = 8080
	// runtimePort is where it meets its Runtime API, as on AWS.
	runtimePort = 9001
	// spansPort is where its SDK of OpenTelemetry sends spans, the default of OTLP over
	// HTTP.
	spansPort = 4318
)
