package sandbox

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/functions/sandbox/egress"
)

// machineNet follows the addresses of this machine, for the networks of instances that
// are made ahead. What is checked when a connection is made does not depend on it.
type machineNet struct {
	mu      sync.Mutex
	looked  time.Time
	known   netns
	changes uint64
}

// lookEvery is how old the knowledge may be.
const lookEvery = time.Second

// current is what a new network is to be like, and its version.
func (n *machineNet) current() (uint64, netns) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.looked) > lookEvery {
		n.looked = time.Now()
		if now := lookAtMachine(); n.changes == 0 || !now.equal(&n.known) {
			n.known = now
			n.changes++
		}
	}
	return n.changes, n.known
}

func (n *machineNet) version() uint64 {
	v, _ := n.current()
	return v
}

func (n *netns) equal(o *netns) bool {
	a, b := ahead{Net: *n}, ahead{Net: *o}
	return string(a.pack()) == string(b.pack())
}

func lookAtMachine() netns {
	n := netns{Outbound: true, IPv6: egress.Routed6()}
	addresses, _ := net.InterfaceAddrs()
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok {
			if addr, ok := netip.AddrFromSlice(ip.IP); ok {
				n.Machine = append(n.Machine, addr.Unmap())
			}
		}
	}
	for _, r := range egress.Resolvers() {
		n.Resolvers = append(n.Resolvers, r.Addr())
	}
	return n
}
