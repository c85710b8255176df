//go:build linux

package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const (
	namePort = 53
	// maxQuestions bounds the questions of one sandbox that wait for an answer.
	maxQuestions = 256
	// nameTimeout is how long one name server may take, as resolvers wait by default
	// (resolv.conf(5)).
	nameTimeout = 5 * time.Second
	// maxMessage is the largest message over UDP.
	maxMessage = 64 << 10
)

// Resolvers are the name servers of this machine (resolv.conf(5)).
func Resolvers() []netip.AddrPort {
	b, _ := os.ReadFile("/etc/resolv.conf")
	return parseResolvers(string(b))
}

func parseResolvers(conf string) (out []netip.AddrPort) {
	for line := range strings.Lines(conf) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			if a, err := netip.ParseAddr(f[1]); err == nil {
				out = append(out, netip.AddrPortFrom(a.Unmap(), namePort))
			}
		}
	}
	if len(out) == 0 {
		out = append(out, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), namePort))
	}
	return out[:min(len(out), 3)]
}

// ServeQuestions takes questions to name servers, whatever address they are sent to,
// and answers them from that address with what this machine's name servers say.
func (s *Server) ServeQuestions(c *net.UDPConn) {
	if !s.keep(c) {
		return
	}
	go func() {
		defer s.drop(c)
		message, control := make([]byte, maxMessage), make([]byte, 256)
		for {
			n, cn, _, from, err := c.ReadMsgUDPAddrPort(message, control)
			if err != nil {
				return
			}
			reply := replyFrom(control[:cn])
			if !isQuestion(message[:n]) {
				continue
			}
			leave, why := enter(s.questions, s.all.questions)
			if why != "" {
				continue // as a busy name server does
			}
			asked := append([]byte(nil), message[:n]...)
			go func() {
				defer leave()
				if answer := s.ask(asked); answer != nil {
					_, _, _ = c.WriteMsgUDPAddrPort(answer, reply, from)
				}
			}()
		}
	}()
}

// isQuestion reports whether a message is one question to a name server and nothing
// else, so that this is not a way to send anything to what listens on port 53. Name
// servers often trust the machine they run on: updates (RFC 2136), notifications (RFC
// 1996) and transfers of whole zones (RFC 5936, RFC 1995) are not passed on.
func isQuestion(message []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.Response || h.OpCode != 0 {
		return false
	}
	// The numbers of answers and of authorities (RFC 1035, section 4.1.1).
	if binary.BigEndian.Uint32(message[6:]) != 0 {
		return false
	}
	all, err := p.AllQuestions()
	return err == nil && len(all) == 1 && all[0].Type != dnsmessage.TypeAXFR && all[0].Type != typeIXFR
}

// typeIXFR is the type of an incremental transfer (RFC 1995).
const typeIXFR = dnsmessage.Type(251)

// copyQuestions passes on questions that come by TCP, each after its length in two
// bytes (RFC 1035, section 4.2.2). Anything else ends the connection.
func copyQuestions(to, from net.Conn) {
	ended(to, from, passQuestions(to, from))
}

var errNoQuestion = errors.New("it is not a question to a name server")

func passQuestions(to io.Writer, from io.Reader) error {
	message := make([]byte, 2+maxMessage)
	for {
		if _, err := io.ReadFull(from, message[:2]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n := 2 + int(binary.BigEndian.Uint16(message))
		if _, err := io.ReadFull(from, message[2:n]); err != nil {
			return err
		}
		if !isQuestion(message[2:n]) {
			return errNoQuestion
		}
		if _, err := to.Write(message[:n]); err != nil {
			return err
		}
	}
}

// ask asks one name server after another; nil: none answers.
func (s *Server) ask(message []byte) []byte {
	for _, server := range s.names() {
		if answer := s.askOne(message, server); answer != nil {
			return answer
		}
		if s.ctx.Err() != nil {
			break
		}
	}
	return nil
}

func (s *Server) askOne(message []byte, server netip.AddrPort) []byte {
	ctx, cancel := context.WithTimeout(s.ctx, nameTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	defer c.Close()
	if _, err := c.Write(message); err != nil {
		return nil
	}
	answer := make([]byte, maxMessage)
	for {
		n, err := c.Read(answer)
		if err != nil {
			return nil
		}
		if n >= 2 && answer[0] == message[0] && answer[1] == message[1] {
			return answer[:n]
		}
	}
}

// replyFrom makes the control message that sends an answer from the address that the
// question was sent to.
func replyFrom(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := &unix.Inet4Pktinfo{Spec_dst: [4]byte(m.Data[8:12])}
			return unix.PktInfo4(info)
		case m.Header.Level == unix.SOL_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := &unix.Inet6Pktinfo{Addr: [16]byte(m.Data[:16])}
			return unix.PktInfo6(info)
		}
	}
	return nil
}
