//go:build linux

package egress

import (
	"net/netip"
	"slices"
)

// Metadata are the addresses of clouds' metadata services that are not link-local: who
// asks them is given the machine's credentials.
var Metadata = []netip.Prefix{
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("168.63.129.16/32"),   // Azure: the WireServer
	netip.MustParsePrefix("192.0.0.192/32"),     // Oracle Cloud Classic
	netip.MustParsePrefix("fd00:ec2::/32"),      // AWS: metadata ::254, credentials of EKS pods ::23
	netip.MustParsePrefix("fd00:42::42/128"),    // Scaleway
	netip.MustParsePrefix("fd20:ce::254/128"),   // Google Cloud
}

var (
	thisNet   = netip.MustParsePrefix("0.0.0.0/8")
	reserved  = netip.MustParsePrefix("240.0.0.0/4")
	siteLocal = netip.MustParsePrefix("fec0::/10")
)

// refusal says why a sandbox may not connect; "": it may.
func (s *Server) refusal(to netip.AddrPort) string {
	if !to.IsValid() {
		return "it is not an address"
	}
	a := to.Addr().Unmap()
	if slices.Contains(s.policy.Allow, netip.AddrPortFrom(a, to.Port())) {
		return ""
	}
	if a.Zone() != "" {
		return "it is a link-local address"
	}
	if why := special(a); why != "" {
		return why
	}
	for _, e := range append(embedded(a), a) {
		if why := special(e); why != "" {
			return why
		}
		own, err := local(e)
		if err != nil {
			return "it could not be found out where it leads: " + err.Error()
		}
		if own {
			return "it is an address of this machine (isolation.network_allow lets a function reach a service of it)"
		}
	}
	return ""
}

// special says whether an address is one that leads to no other host.
func special(a netip.Addr) string {
	switch {
	case a.IsLoopback():
		return "it is a loopback address"
	case a.IsUnspecified(), thisNet.Contains(a):
		return "it is not an address of a host"
	case a.IsLinkLocalUnicast(), siteLocal.Contains(a):
		return "it is a link-local address, where clouds have their metadata services"
	case slices.ContainsFunc(Metadata, func(p netip.Prefix) bool { return p.Contains(a) }):
		return "it is the metadata service of a cloud"
	case a.IsMulticast(), reserved.Contains(a):
		return "it is a multicast, broadcast or reserved address"
	}
	return ""
}
