package egress

import (
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// TestRefusal: nothing of this machine, and nothing that is no host, whatever form the
// address has.
func TestRefusal(t *testing.T) {
	s := New(Policy{Allow: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5432")}})
	defer s.Close()
	refused := []string{
		"127.0.0.1:80", "127.255.255.254:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "0.1.2.3:80", "[::]:80",
		"169.254.169.254:80", "[fe80::1]:80", "[fe80::1%1]:80", "[fec0::1]:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80", "240.0.0.1:80",
		"[64:ff9b::7f00:1]:80", "[64:ff9b::a9fe:a9fe]:80", "[64:ff9b:1::7f00:1]:80", "[2002:7f00:1::]:80", "[::127.0.0.1]:80",
		"127.0.0.1:5433", "[::1]:5432",
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if ip, ok := netip.AddrFromSlice(a.(*net.IPNet).IP); ok {
			refused = append(refused, netip.AddrPortFrom(ip, 80).String())
			if ip = ip.Unmap(); ip.Is4() { // also as IPv6 writes it
				b := ip.As4()
				for _, prefix := range []string{"64:ff9b::", "::ffff:0:0"} {
					p := netip.MustParseAddr(prefix).As16()
					copy(p[12:], b[:])
					refused = append(refused, netip.AddrPortFrom(netip.AddrFrom16(p), 80).String())
				}
			}
		}
	}
	for _, a := range refused {
		if s.refusal(netip.MustParseAddrPort(a)) == "" {
			t.Errorf("%s is not refused", a)
		}
	}
	for _, a := range []string{"1.1.1.1:443", "10.9.8.7:80", "127.0.0.1:5432", "[::ffff:127.0.0.1]:5432", "[2001:db8::1]:443"} {
		if why := s.refusal(netip.MustParseAddrPort(a)); why != "" {
			t.Errorf("%s is refused: %s", a, why)
		}
	}
	if s.refusal(netip.AddrPort{}) == "" {
		t.Error("no address is not refused")
	}
}

func TestResolvers(t *testing.T) {
	got := parseResolvers("# nameserver 9.9.9.9\nsearch example\nnameserver 10.0.0.1\nnameserver fe80::1%2\nnameserver bad\nnameserver ::1\nnameserver 10.0.0.2\n")
	if len(got) != 3 || got[0].String() != "10.0.0.1:53" || got[2].String() != "[::1]:53" {
		t.Errorf("%v", got)
	}
	if got := parseResolvers(""); len(got) != 1 || got[0].String() != "127.0.0.1:53" {
		t.Errorf("without a file: %v", got)
	}
}

// FuzzQuestion: only a question passes.
func FuzzQuestion(f *testing.F) {
	question, err := (&dnsmessage.Message{Questions: []dnsmessage.Question{{
		Name: dnsmessage.MustNewName("example.com."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
	}}}).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(question)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if isQuestion(b) && len(b) < 17 { // a header, and a question of at least five bytes
			t.Errorf("%q is taken for a question", b)
		}
	})
}
