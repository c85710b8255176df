package egress

import "net/netip"

// embedding is a kind of address of IPv6 that holds addresses of IPv4.
type embedding struct {
	prefix netip.Prefix
	// at are the positions of the four bytes. Where there are several, any may be meant.
	at [][4]int
	// inverted means that the bytes are stored as their complement.
	inverted bool
}

var (
	last = [4]int{12, 13, 14, 15}

	// embeddings are those that translators and tunnels lead to the host of IPv4.
	embeddings = []embedding{
		{prefix: netip.MustParsePrefix("64:ff9b::/96"), at: [][4]int{last}}, // NAT64 (RFC 6052)
		// NAT64 within a network (RFC 8215). How long its prefix is, is not known, so these
		// are all positions of RFC 6052, section 2.2, which leaves out byte 8.
		{prefix: netip.MustParsePrefix("64:ff9b:1::/48"), at: [][4]int{{6, 7, 9, 10}, {7, 9, 10, 11}, {9, 10, 11, 12}, last}},
		{prefix: netip.MustParsePrefix("::/96"), at: [][4]int{last}},                     // "IPv4-compatible" (RFC 4291)
		{prefix: netip.MustParsePrefix("::ffff:0:0:0/96"), at: [][4]int{last}},           // "IPv4-translated" (RFC 2765)
		{prefix: netip.MustParsePrefix("2002::/16"), at: [][4]int{{2, 3, 4, 5}}},         // 6to4 (RFC 3056)
		{prefix: netip.MustParsePrefix("2001::/32"), at: [][4]int{{4, 5, 6, 7}}},         // Teredo (RFC 4380): its server
		{prefix: netip.MustParsePrefix("2001::/32"), at: [][4]int{last}, inverted: true}, // Teredo: its client
	}
)

// embedded are the addresses of IPv4 that one of IPv6 may be translated to.
func embedded(a netip.Addr) []netip.Addr {
	if !a.Is6() {
		return nil
	}
	var out []netip.Addr
	b := a.As16()
	take := func(at [4]int, inverted bool, several bool) {
		var four [4]byte
		for i, from := range at {
			if four[i] = b[from]; inverted {
				four[i] = ^four[i]
			}
		}
		// Of several readings those that are the zeros beside the address are not meant.
		if found := netip.AddrFrom4(four); !several || !thisNet.Contains(found) {
			out = append(out, found)
		}
	}
	for _, e := range embeddings {
		if e.prefix.Contains(a) {
			for _, at := range e.at {
				take(at, e.inverted, len(e.at) > 1)
			}
		}
	}
	// ISATAP (RFC 5214): an interface identifier, below any prefix.
	if b[8]&^0x02 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe {
		take(last, false, false)
	}
	return out
}
