package sandbox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/penstock-gateway/penstock/functions/sandbox/egress"
)

// Private reports whether the place has a network of its own, so that its addresses and
// ports are not those of the machine.
func (p *Place) Private() bool { return p.sockets != nil }

// Listen returns the listener of the Runtime API, once. In a network of its own only
// what runs in the place reaches it; else see Process.Owns.
func (p *Place) Listen() (net.Listener, error) {
	if p.sockets == nil {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	return p.sockets.listener(handedAPI)
}

// ListenSpans returns the listener for spans of the program, once; nil when its policy
// allows a service of the machine in that very place. Who reaches it is as with Listen.
func (p *Place) ListenSpans() (net.Listener, error) {
	if p.sockets == nil {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	if slices.ContainsFunc(p.plan.policy.Network.Allow, atSpansPort) {
		return nil, nil
	}
	return p.sockets.listener(handedSpans)
}

// atSpansPort reports whether a service takes the place of the listener for spans.
func atSpansPort(a netip.AddrPort) bool {
	return a.Port() == spansPort && (a.Addr().IsLoopback() && a.Addr().Is4())
}

// Dial connects to a port on 127.0.0.1 of the place.
func (p *Place) Dial(ctx context.Context, port int) (net.Conn, error) {
	if p.sockets == nil {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	}
	return p.sockets.dial(ctx, port)
}

// serve begins to pass on what leads out of the place's network.
func (p *Place) serve() error {
	n := p.plan.policy.Network
	p.outbound = egress.New(egress.Policy{Allow: n.Allow, Refused: n.Refused})
	if slices.ContainsFunc(n.Allow, atSpansPort) {
		if f := p.sockets.take(handedSpans); f != nil {
			f.Close()
		}
	}
	for _, a := range n.Allow {
		if err := p.allow(a); err != nil {
			return fmt.Errorf("isolation.network_allow %s: %w", a, err)
		}
	}
	if !p.plan.outbound {
		for _, which := range []int{handedOutbound, handedDNS, handedDNSStream} {
			if f := p.sockets.take(which); f != nil {
				f.Close()
			}
		}
		return nil
	}
	l, err := p.sockets.listener(handedOutbound)
	if err != nil {
		return err
	}
	p.outbound.Serve(l)
	if l, err = p.sockets.listener(handedDNSStream); err != nil {
		return err
	}
	p.outbound.ServeNames(l)
	f := p.sockets.take(handedDNS)
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return err
	}
	p.outbound.ServeQuestions(c.(*net.UDPConn))
	return nil
}

// allow lets the place reach a service of this machine at the service's own address.
func (p *Place) allow(a netip.AddrPort) error {
	f, err := p.sockets.ask(frameListen, []byte(a.String()))
	if err != nil {
		return err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	p.outbound.Forward(l, a)
	return nil
}

// bound reports whether a program in the machine's network may listen on its PORT only.
func (p *Plan) bound() bool {
	return !p.private && p.policy.Level != None && p.policy.Network.Mode != HostNetwork && p.machine.landlock >= landlockNet
}

// lacksOf are the entries of missing that name some means.
func (m *Machine) lacksOf(means ...string) (out []string) {
	for _, entry := range m.missing {
		if slices.ContainsFunc(means, func(name string) bool { return len(entry) > len(name) && entry[:len(name)] == name }) {
			out = append(out, entry)
		}
	}
	return out
}
