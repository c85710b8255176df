//go:build linux

package egress

import (
	"net/netip"
	"slices"
)

// Prefixes whose addresses hold one of IPv4: NAT64 (RFC 6052, RFC 8215), 6to4 (RFC
// 3056, bytes 2 to 5) and "IPv4-compatible" ones (RFC 4291).
var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")
	sixToFour  = netip.MustParsePrefix("2002::/16")
	compatible = netip.MustParsePrefix("::/96")
	thisNet    = netip.MustParsePrefix("0.0.0.0/8")
	reserved   = netip.MustParsePrefix("240.0.0.0/4")
	siteLocal  = netip.MustParsePrefix("fec0::/10")
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
	case a.IsMulticast(), reserved.Contains(a):
		return "it is a multicast, broadcast or reserved address"
	}
	return ""
}

// embedded are the addresses of IPv4 that one of IPv6 may be translated to.
func embedded(a netip.Addr) []netip.Addr {
	if !a.Is6() {
		return nil
	}
	b := a.As16()
	last := netip.AddrFrom4([4]byte(b[12:16]))
	switch {
	case nat64.Contains(a), compatible.Contains(a), nat64Local.Contains(a):
		return []netip.Addr{last}
	case sixToFour.Contains(a):
		return []netip.Addr{netip.AddrFrom4([4]byte(b[2:6]))}
	}
	return nil
}
