package sandbox

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"github.com/penstock-gateway/penstock/functions/sandbox/egress"
)

// Two hosts, each a network namespace of its own: a machine that runs a sandbox, and one
// that serves on all its addresses, among them those of metadata services. They are of
// RFC 5737 and RFC 3849, which belong to nobody.
var (
	machineAddresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")}
	hostAddresses    = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("2001:db8::2/64")}
	metadataOnHost   = []string{"169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"}
)

// The answers of the other host's name server.
var (
	namedHost     = netip.MustParseAddr("192.0.2.2")
	namedLoopback = "loopback.example."
)

func init() {
	inside["machine"] = asMachine
	inside["host"] = asHost
}

// TestOtherHost: from a sandbox other hosts are reached, by both families of addresses
// and by name, but neither metadata services nor, by whichever name, this machine.
func TestOtherHost(t *testing.T) {
	for name, user := range map[string]bool{"user namespace": true, "root": false} {
		if !user && os.Geteuid() != 0 {
			continue // the same as the other one
		}
		t.Run(name, func(t *testing.T) {
			cmd := inNamespaces(t, "machine", syscall.CLONE_NEWNET|syscall.CLONE_NEWNS, user)
			conf := filepath.Join(t.TempDir(), "resolv.conf")
			if err := os.WriteFile(conf, []byte("nameserver "+namedHost.String()+"\noptions timeout:5 attempts:1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(cmd.Env, "SANDBOX_ARGS="+conf)
			got, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, got)
			}
			want := "192.0.2.2:80 reached\n[2001:db8::2]:80 reached\nhost.example:80 reached\nloopback.example:80 refused\n"
			for _, a := range metadataOnHost {
				want += net.JoinHostPort(a, "80") + " refused\n"
			}
			want += "192.0.2.1:80 refused\n[2001:db8::1]:80 refused\nTCP: 192.0.2.2 <nil>\n"
			if string(got) != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// inNamespaces is the command that runs one of inside in namespaces of its own.
func inNamespaces(t testing.TB, what string, flags uintptr, user bool) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "SANDBOX_RUNS="+what)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if user {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return cmd
}

// must ends a program of inside that cannot do what it is for.
func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// asMachine is the machine that runs a sandbox; args are its /etc/resolv.conf.
func asMachine(args []string) {
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	must(err)
	must(unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	must(unix.Mount(args[0], target, "", unix.MS_BIND, ""))
	other := exec.Command("/proc/self/exe")
	other.Env = []string{"SANDBOX_RUNS=host"}
	other.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	start, err := other.StdinPipe()
	must(err)
	says, err := other.StdoutPipe()
	must(err)
	must(other.Start())
	must(cable(other.Process.Pid))
	must(bring(machineAddresses, hostAddresses))
	_, err = io.WriteString(start, "\n")
	must(err)
	if line, err := bufio.NewReader(says).ReadString('\n'); line != "ready\n" {
		must(errors.Join(fmt.Errorf("the other host: %q", line), err))
	}
	for _, a := range machineAddresses {
		l, err := net.Listen("tcp", netip.AddrPortFrom(a.Addr(), 80).String())
		must(err)
		go greet(l)
	}
	dials := []string{"192.0.2.2:80", "[2001:db8::2]:80", "host.example:80", "loopback.example:80"}
	for _, a := range metadataOnHost {
		dials = append(dials, net.JoinHostPort(a, "80"))
	}
	dials = append(dials, "192.0.2.1:80", "[2001:db8::1]:80")
	must(runs(os.Stdout, "dial", dials))
	must(runs(os.Stdout, "ask", nil))
	start.Close()
	must(other.Wait())
}

// runs runs one of inside in a sandbox.
func runs(output *os.File, what string, args []string) error {
	plan, err := Probe().Plan(Policy{Network: Network{Refused: func(netip.AddrPort, string) {}}})
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "penstock-source-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := plan.Start(Command{
		ID: "test", Args: []string{self}, Dir: dir, Stdout: output, Stderr: output,
		Env: map[string]string{"SANDBOX_RUNS": what, "SANDBOX_ARGS": strings.Join(args, " ")},
	}, (*exec.Cmd).Start)
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Ending(p.Cmd.Wait())
}

// asHost is the other host. It ends with its input.
func asHost([]string) {
	in := bufio.NewReader(os.Stdin)
	_, err := in.ReadString('\n')
	must(err)
	addresses := hostAddresses
	for _, a := range metadataOnHost {
		one := netip.MustParseAddr(a)
		addresses = append(addresses, netip.PrefixFrom(one, one.BitLen()))
	}
	must(bring(addresses, machineAddresses))
	web, err := net.Listen("tcp", ":80")
	must(err)
	go greet(web)
	names, err := net.ListenPacket("udp", netip.AddrPortFrom(namedHost, 53).String())
	must(err)
	go answerUDP(names)
	stream, err := net.Listen("tcp", netip.AddrPortFrom(namedHost, 53).String())
	must(err)
	go answerTCP(stream)
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, in)
}

func greet(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(c, "reached")
		c.Close()
	}
}

func answerUDP(c net.PacketConn) {
	b := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if answer, err := named(b[:n]); err == nil {
			_, _ = c.WriteTo(answer, from)
		}
	}
}

func answerTCP(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		length := make([]byte, 2)
		_, err = io.ReadFull(c, length)
		question := make([]byte, binary.BigEndian.Uint16(length))
		if err == nil {
			_, err = io.ReadFull(c, question)
		}
		if answer, bad := named(question); err == nil && bad == nil {
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
		}
		c.Close()
	}
}

// named answers a question as the only name server that there is.
func named(question []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	for _, q := range m.Questions {
		if q.Type != dnsmessage.TypeA {
			continue
		}
		a := namedHost
		if q.Name.String() == namedLoopback {
			a = netip.MustParseAddr("127.0.0.1")
		}
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: a.As4()},
		})
	}
	return m.Pack()
}

// cable connects this network namespace to that of a process, by a pair of devices: the
// second in each.
func cable(pid int) error {
	const kindInfo, peerInfo = 2, 1 // IFLA_INFO_DATA, VETH_INFO_PEER
	b := &netlinkBatch{}
	b.message(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg))
	b.nest(unix.IFLA_LINKINFO, func() {
		b.str(unix.IFLA_INFO_KIND, "veth")
		b.nest(kindInfo, func() {
			b.nest(peerInfo, func() {
				b.b = append(b.b, make([]byte, unix.SizeofIfInfomsg)...)
				b.attr(unix.IFLA_NET_NS_PID, binary.NativeEndian.AppendUint32(nil, uint32(pid)))
			})
		})
	})
	return b.send(unix.NETLINK_ROUTE)
}

// bring brings up all devices of this network namespace and gives the second one
// addresses, with routes of last resort to the other end of the cable.
func bring(own, other []netip.Prefix) error {
	devices, err := net.Interfaces()
	if err != nil {
		return err
	}
	b, cabled := &netlinkBatch{}, 0
	for _, d := range devices {
		if d.Name != "lo" && !strings.HasPrefix(d.Name, "veth") {
			continue // those of tunnels, which a kernel may put into each namespace
		}
		if d.Name != "lo" {
			cabled = d.Index
		}
		header := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(header[4:], uint32(d.Index))
		binary.NativeEndian.PutUint32(header[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(header[12:], unix.IFF_UP)
		b.message(unix.RTM_NEWLINK, unix.NLM_F_ACK, header)
	}
	for _, a := range own {
		header := make([]byte, unix.SizeofIfAddrmsg)
		header[0], header[1], header[2] = family(a.Addr()), byte(a.Bits()), unix.IFA_F_NODAD
		binary.NativeEndian.PutUint32(header[4:], uint32(cabled))
		b.message(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, header)
		b.attr(unix.IFA_LOCAL, a.Addr().AsSlice())
		b.attr(unix.IFA_ADDRESS, a.Addr().AsSlice())
	}
	for _, a := range other {
		header := make([]byte, unix.SizeofRtMsg)
		header[0], header[4], header[5], header[7] = family(a.Addr()), unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RTN_UNICAST
		b.message(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE, header)
		b.attr(unix.RTA_GATEWAY, a.Addr().AsSlice())
	}
	return b.send(unix.NETLINK_ROUTE)
}

func init() {
	// A question by TCP, as after an answer that was too long.
	inside["ask"] = func([]string) {
		q := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true}, Questions: []dnsmessage.Question{
			{Name: dnsmessage.MustNewName("host.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
		}}
		b, err := q.Pack()
		must(err)
		c, err := net.Dial("tcp", netip.AddrPortFrom(egress.Resolvers()[0].Addr(), 53).String())
		must(err)
		_, err = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		must(err)
		answer, err := io.ReadAll(c)
		must(err)
		var m dnsmessage.Message
		must(m.Unpack(answer[min(2, len(answer)):]))
		fmt.Println("TCP:", netip.AddrFrom4(m.Answers[0].Body.(*dnsmessage.AResource).A), err)
	}
}
