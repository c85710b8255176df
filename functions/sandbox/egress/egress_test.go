package egress

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/net/dns/dnsmessage"
)

// TestRefusal: nothing of this machine, and nothing that is not a host, whatever form the
// address has.
func TestRefusal(t *testing.T) {
	s := New(Policy{Allow: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:5432")}})
	defer s.Close()
	refused := []string{
		"127.0.0.1:80", "127.255.255.254:80", "[::1]:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "0.1.2.3:80", "[::]:80",
		"169.254.169.254:80", "[fe80::1]:80", "[fe80::1%1]:80", "[fec0::1]:80", "224.0.0.1:80", "[ff02::1]:80", "255.255.255.255:80", "240.0.0.1:80",
		"[64:ff9b::7f00:1]:80", "[64:ff9b::a9fe:a9fe]:80", "[64:ff9b:1::7f00:1]:80", "[2002:7f00:1::]:80", "[::127.0.0.1]:80",
		"127.0.0.1:5433", "[::1]:5432",
		// NAT64 within a network, by the length of its prefix: 48, 56 and 64.
		"[64:ff9b:1:7f00:0:100::]:80", "[64:ff9b:1:7f:0:1::]:80", "[64:ff9b:1:0:7f:0:100:0]:80",
		"[::ffff:0:127.0.0.1]:80", "[2001:0:7f00:1::]:80", "[2001::80ff:fffe]:80", "[2001:db8::5efe:127.0.0.1]:80", "[2001:db8::200:5efe:127.0.0.1]:80",
		// Metadata services that are not link-local.
		"100.100.100.200:80", "168.63.129.16:80", "192.0.0.192:80", "[fd00:ec2::254]:80", "[fd00:ec2::23]:80", "[fd00:42::42]:80", "[fd20:ce::254]:80",
		"[::ffff:100.100.100.200]:80", "[64:ff9b::168.63.129.16]:80",
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
	for _, a := range []string{"1.1.1.1:443", "10.9.8.7:80", "127.0.0.1:5432", "[::ffff:127.0.0.1]:5432", "[2001:db8::1]:443",
		"100.100.100.201:80", "[64:ff9b::8.8.8.8]:443", "[64:ff9b:1::8.8.8.8]:443", "[fd00:ec3::254]:80", "[2001:4860:4860::8888]:443"} {
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

// TestIsQuestion: updates, notifications, transfers and answers are not questions.
func TestIsQuestion(t *testing.T) {
	header := func(set func(*dnsmessage.Header)) dnsmessage.Header {
		h := dnsmessage.Header{ID: 1, RecursionDesired: true}
		set(&h)
		return h
	}
	plain := func(*dnsmessage.Header) {}
	question := func(kind dnsmessage.Type) []dnsmessage.Question {
		return []dnsmessage.Question{{Name: dnsmessage.MustNewName("example.com."), Type: kind, Class: dnsmessage.ClassINET}}
	}
	record := []dnsmessage.Resource{{
		Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("example.com."), Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{},
	}}
	option := []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: 4096}, Body: &dnsmessage.OPTResource{}}}
	for name, c := range map[string]struct {
		m    dnsmessage.Message
		want bool
	}{
		"address":       {dnsmessage.Message{Header: header(plain), Questions: question(dnsmessage.TypeA)}, true},
		"with options":  {dnsmessage.Message{Header: header(plain), Questions: question(dnsmessage.TypeAAAA), Additionals: option}, true},
		"two":           {dnsmessage.Message{Header: header(plain), Questions: append(question(1), question(28)...)}, false},
		"none":          {dnsmessage.Message{Header: header(plain)}, false},
		"answer":        {dnsmessage.Message{Header: header(func(h *dnsmessage.Header) { h.Response = true }), Questions: question(1)}, false},
		"update":        {dnsmessage.Message{Header: header(func(h *dnsmessage.Header) { h.OpCode = 5 }), Questions: question(6), Authorities: record}, false},
		"notification":  {dnsmessage.Message{Header: header(func(h *dnsmessage.Header) { h.OpCode = 4 }), Questions: question(6)}, false},
		"with answers":  {dnsmessage.Message{Header: header(plain), Questions: question(1), Answers: record}, false},
		"transfer":      {dnsmessage.Message{Header: header(plain), Questions: question(dnsmessage.TypeAXFR)}, false},
		"part transfer": {dnsmessage.Message{Header: header(plain), Questions: question(251)}, false},
	} {
		b, err := c.m.Pack()
		if err != nil {
			t.Fatal(name, err)
		}
		if got := isQuestion(b); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
		// By TCP, in two pieces of a stream: what came before is passed on.
		good, err := (&dnsmessage.Message{Header: header(plain), Questions: question(1)}).Pack()
		if err != nil {
			t.Fatal(err)
		}
		stream, first := framed(good), len(framed(good))
		stream = append(stream, framed(b)...)
		var out bytes.Buffer
		err = passQuestions(&out, iotest.OneByteReader(bytes.NewReader(stream)))
		if want := stream[:first]; !c.want && (err == nil || !bytes.Equal(out.Bytes(), want)) || c.want && (err != nil || !bytes.Equal(out.Bytes(), stream)) {
			t.Errorf("%s by TCP: %v, %q", name, err, out.Bytes())
		}
	}
	for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "\x00", "\x00\x00", "\x00\x05hi"} {
		var out bytes.Buffer
		if err := passQuestions(&out, strings.NewReader(text)); err == nil || out.Len() > 0 {
			t.Errorf("%q: %v, %q", text, err, out.Bytes())
		}
	}
}

func framed(message []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...)
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
