package sandbox

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/penstock-gateway/penstock/functions/sandbox/egress"
)

// Ports of all addresses in an instance's network that are the runner's.
const (
	// outboundPort takes the connections that lead out.
	outboundPort = 1
	dnsPort      = 53
)

// Addresses of an instance's loopback interface besides 127.0.0.1 and ::1, so that
// programs which ask whether there is a network find one: the dummy address of RFC
// 7600, which belongs to nobody, and a unique local one (RFC 4193).
var (
	ownAddress4 = netip.MustParseAddr("192.0.0.8")
	ownAddress6 = netip.MustParseAddr("fd70:656e:7374:6f63:6b::1")
)

// never are addresses that lead nowhere from an instance, besides those of its
// machine: "this network", link-local (with most metadata services of clouds),
// multicast and reserved ones (RFC 6890), and the other metadata services.
var never = append([]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("fe80::/10"), netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("ff00::/8"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0/96"),
}, egress.Metadata...)

// netns is what the network namespace of an instance is to be like.
type netns struct {
	// Outbound leads connections to other hosts to the runner, IPv6 those of IPv6, too.
	Outbound, IPv6 bool
	// Machine are the addresses of the machine, Resolvers those of its name servers:
	// they are asked in the instance's place, wherever they are.
	Machine, Resolvers []netip.Addr
}

// setUp makes the network of this thread's namespace: the loopback interface, and a
// way out that ends at a socket of the runner.
//
// Every address is local ("AnyIP"), so that no device is needed; what goes to another
// host is handed to the runner's listener by a rule of nftables (tproxy), and what the
// runner does not take on (UDP besides DNS, ICMP) is refused at the source. It needs
// no right outside the namespace.
func (n *netns) setUp() error {
	if err := n.links().send(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("set up the loopback interface: %w", err)
	}
	if err := n.routes().send(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("set up routes: %w", err)
	}
	if !n.Outbound {
		return nil
	}
	if err := n.rules().send(unix.NETLINK_NETFILTER); err != nil {
		return fmt.Errorf("set up nftables: %w", err)
	}
	return nil
}

const loopbackIndex = 1

func ifinfo(flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], loopbackIndex)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags)
	return b
}

func (n *netns) links() *netlinkBatch {
	out := &netlinkBatch{}
	out.message(unix.RTM_NEWLINK, unix.NLM_F_ACK, ifinfo(unix.IFF_UP))
	return out
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (n *netns) families() []netip.Addr {
	if n.IPv6 {
		return []netip.Addr{ownAddress4, ownAddress6}
	}
	return []netip.Addr{ownAddress4}
}

// routes make every address local, but those that are not to be reached.
func (n *netns) routes() *netlinkBatch {
	out := &netlinkBatch{}
	index := binary.NativeEndian.AppendUint32(nil, loopbackIndex)
	for _, own := range n.families() {
		b := make([]byte, unix.SizeofIfAddrmsg)
		// Without a search for duplicates an address of IPv6 is there at once.
		b[0], b[1], b[2] = family(own), byte(own.BitLen()), unix.IFA_F_NODAD
		binary.NativeEndian.PutUint32(b[4:], loopbackIndex)
		out.message(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, b)
		out.attr(unix.IFA_LOCAL, own.AsSlice())
		out.attr(unix.IFA_ADDRESS, own.AsSlice())
		out.route(netip.PrefixFrom(own, 0).Masked(), unix.RTN_LOCAL)
		out.attr(unix.RTA_OIF, index)
		out.attr(unix.RTA_PREFSRC, own.AsSlice())
		for _, p := range never {
			if family(p.Addr()) == family(own) {
				out.refuse(p)
			}
		}
	}
	seen := map[netip.Addr]bool{}
	for _, a := range n.Machine {
		a = a.Unmap().WithZone("")
		if !seen[a] && !a.IsLoopback() && (a.Is4() || n.IPv6) {
			out.refuse(netip.PrefixFrom(a, a.BitLen()))
		}
		seen[a] = true
	}
	for _, a := range n.Resolvers {
		if a = a.Unmap().WithZone(""); !a.IsLoopback() && (a.Is4() || n.IPv6) {
			out.open(a)
		}
	}
	return out
}

// open makes an address local of which the prefix may be refused.
func (n *netlinkBatch) open(a netip.Addr) {
	own := ownAddress4
	if a.Is6() {
		own = ownAddress6
	}
	n.route(netip.PrefixFrom(a, a.BitLen()), unix.RTN_LOCAL)
	n.attr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, loopbackIndex))
	n.attr(unix.RTA_PREFSRC, own.AsSlice())
}

// reopen lets an address of the machine be reached from this thread's namespace.
func reopen(a netip.Addr) error {
	if a.IsLoopback() {
		return nil
	}
	out := &netlinkBatch{}
	out.open(a)
	return out.send(unix.NETLINK_ROUTE)
}

// route begins a route in the table of local addresses.
func (n *netlinkBatch) route(to netip.Prefix, kind byte) {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1], b[4], b[5], b[6], b[7] = family(to.Addr()), byte(to.Bits()), unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, kind
	n.message(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, b)
	if to.Bits() > 0 {
		n.attr(unix.RTA_DST, to.Addr().AsSlice())
	}
}

// refuse has connections to some addresses fail with EACCES.
func (n *netlinkBatch) refuse(p netip.Prefix) { n.route(p, unix.RTN_PROHIBIT) }

// rules are those of nftables.
func (n *netns) rules() *netlinkBatch {
	out := &netlinkBatch{}
	out.message(unix.NFNL_MSG_BATCH_BEGIN, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	for _, own := range n.families() {
		f := nftables{out, family(own), own}
		f.table()
		f.chain("in", unix.NF_INET_PRE_ROUTING)
		f.chain("out", unix.NF_INET_LOCAL_OUT)
		f.rule("in", func() {
			f.elsewhere()
			f.protocol(unix.NFT_CMP_EQ, unix.IPPROTO_TCP)
			f.tproxy(outboundPort)
		})
		f.rule("out", func() {
			f.elsewhere()
			f.protocol(unix.NFT_CMP_EQ, unix.IPPROTO_UDP)
			f.destinationPort(dnsPort)
			f.verdict(unix.NFT_RETURN)
		})
		f.rule("out", func() {
			f.elsewhere()
			f.protocol(unix.NFT_CMP_NEQ, unix.IPPROTO_TCP)
			f.verdict(0) // NF_DROP; the sender gets EPERM
		})
	}
	out.message(unix.NFNL_MSG_BATCH_END, 0, nfgen(0, unix.NFNL_SUBSYS_NFTABLES))
	return out
}
