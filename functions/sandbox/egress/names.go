//go:build linux

package egress

import (
	"context"
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
			select {
			case s.questions <- struct{}{}:
			default:
				continue // as a busy name server does
			}
			asked := append([]byte(nil), message[:n]...)
			go func() {
				defer func() { <-s.questions }()
				if answer := s.ask(asked); answer != nil {
					_, _, _ = c.WriteMsgUDPAddrPort(answer, reply, from)
				}
			}()
		}
	}()
}

// isQuestion tells whether a message is a question to a name server and nothing else, so
// that this is not a way to send anything to what listens on port 53.
func isQuestion(message []byte) bool {
	var p dnsmessage.Parser
	h, err := p.Start(message)
	if err != nil || h.Response {
		return false
	}
	all, err := p.AllQuestions()
	return err == nil && len(all) == 1
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
