package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/ports"
)

// contestant is a control plane in a process of its own with an Envoy of its own.
type contestant struct {
	name    string
	control *child
	envoy   *envoy
	probe   *probe
	// change hands over "route i now answers body"; it returns when the control
	// plane says so.
	change func(ctx context.Context, i int, body string) error
	close  func()
}

func (c *contestant) stop() {
	c.probe.close()
	c.envoy.child.stop()
	c.control.stop()
	if c.close != nil {
		c.close()
	}
}

// proxyAddress takes two free ports: for xDS, and for the proxy's listener.
func proxyAddress() (xds string, port int, err error) {
	p, err := ports.Reserve()
	if err != nil {
		return "", 0, err
	}
	port, err = ports.Reserve()
	return "127.0.0.1:" + strconv.Itoa(p), port, err
}

// peer starts the bare limit or the SnapshotCache with n routes and waits until
// its Envoy serves them.
func (b *bench) peer(ctx context.Context, name string, n int) (*contestant, error) {
	xds, port, err := proxyAddress()
	if err != nil {
		return nil, err
	}
	cert, key, err := b.ca.EnsureFiles(b.dir, "control-"+name, pki.Request{
		SPIFFE: pki.ControlID, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		return nil, err
	}
	id := fmt.Sprintf("%s-%d", name, n)
	l, err := startLines(b.dir, id, role{
		Name: name, Routes: n, Listen: xds, Port: port, Upstream: b.upstream, CA: b.ca.CertFile(), Cert: cert, Key: key,
	})
	if err != nil {
		return nil, err
	}
	c := &contestant{name: name, control: l.child, probe: newProbe(port)}
	if _, err := l.ask(""); err != nil {
		c.control.stop()
		return nil, err
	}
	if c.envoy, err = startEnvoy(ctx, b.ca, b.dir, id, xds); err != nil {
		c.control.stop()
		return nil, err
	}
	c.change = func(_ context.Context, i int, body string) error {
		answer, err := l.ask(strconv.Itoa(i) + " " + body)
		if err == nil && answer != "ok" {
			err = errors.New(answer)
		}
		return err
	}
	if err := c.serves(ctx, n); err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// serves waits until the first, the middle and the last host answer.
func (c *contestant) serves(ctx context.Context, n int) error {
	for _, h := range []int{0, n / perHost / 2, n/perHost - 1} {
		var last string
		err := c.envoy.until(ctx, fmt.Sprintf("%s to serve %d routes", c.name, n), 5*time.Minute, func() bool {
			status, body, err := c.probe.get(hostname(h), path(h*perHost))
			last = fmt.Sprint(status, body, err)
			return err == nil && status == http.StatusOK && body == firstBody
		})
		if err != nil {
			return fmt.Errorf("%w (last answer %s)\n%s", err, last, c.control.tail())
		}
	}
	return nil
}

// ours is the product: `penstock control`, driven over its API.
type ours struct {
	*contestant
	b              *bench
	id             string
	http, api, xds string
	conn           *grpc.ClientConn
	config         pb.ConfigServiceClient
	proxies        pb.ProxyServiceClient
}

// seed is a host that is there from the start, so that the listener has its layout
// before the routes that are measured.
const seed = "seed.example.com"

// ours starts the control plane with a listener, a backend and one host, and an
// Envoy that serves it.
func (b *bench) ours(ctx context.Context, id string) (o *ours, err error) {
	o = &ours{contestant: &contestant{name: "ours"}, b: b, id: id}
	xds, port, err := proxyAddress()
	if err != nil {
		return nil, err
	}
	o.xds, o.probe = xds, newProbe(port)
	if o.api, _, err = proxyAddress(); err != nil {
		return nil, err
	}
	if o.http, _, err = proxyAddress(); err != nil {
		return nil, err
	}
	if err := o.start(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			o.control.stop()
		}
	}()
	if o.conn, err = grpc.NewClient("passthrough:///"+o.api, grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(o.data()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20))); err != nil {
		return nil, err
	}
	o.close = func() { o.conn.Close() }
	o.config, o.proxies = pb.NewConfigServiceClient(o.conn), pb.NewProxyServiceClient(o.conn)
	o.change = func(ctx context.Context, i int, body string) error { return o.apply(ctx, route(i, body)) }
	first := route(0, firstBody)
	first.GetRoute().Name, first.GetRoute().Hostnames = "projects/default/routes/seed", []string{seed}
	gateway := &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: &pb.Gateway{
		Name:      "projects/default/gateways/public",
		Listeners: []*pb.Listener{{Name: "http", Address: "127.0.0.1", Port: uint32(port)}},
	}}}
	if _, err := o.config.Apply(ctx, &pb.ApplyRequest{Resources: []*pb.Resource{gateway, backend(clusterName, b.upstream), first}}); err != nil {
		return nil, err
	}
	if o.envoy, err = startEnvoy(ctx, b.ca, b.dir, id, xds); err != nil {
		return nil, err
	}
	err = o.envoy.until(ctx, "the first host of ours", startTimeout, func() bool {
		status, _, err := o.probe.get(seed, path(0))
		return err == nil && status == http.StatusOK
	})
	if err != nil {
		o.envoy.child.stop()
	}
	return o, err
}

func (o *ours) data() string { return o.b.dir + "/data-" + o.id }

// start runs the control plane on the addresses that are chosen.
func (o *ours) start(ctx context.Context) (err error) {
	o.control, err = start(o.b.dir, "control-"+o.id, exec.Command(o.b.bin, "control", "--data-dir", o.data(),
		"--pki-dir", o.b.ca0, "--api-listen", o.api, "--http-listen", o.http, "--xds-listen", o.xds, "--log-level", "warn",
		"--eager-hosts", strconv.Itoa(o.b.eagerHosts)))
	if err != nil {
		return err
	}
	return o.control.until(ctx, "the control plane to be ready", startTimeout, func() bool {
		resp, err := http.Get("http://" + o.http + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// apply writes and waits until the proxy serves it.
func (o *ours) apply(ctx context.Context, resources ...*pb.Resource) error {
	return o.write(ctx, &pb.ApplyRequest{Resources: resources})
}

func (o *ours) write(ctx context.Context, r *pb.ApplyRequest) error {
	resp, err := o.config.Apply(ctx, r)
	if err != nil {
		return err
	}
	if s := resp.GetResult().GetServing(); s.GetServing() != 1 || !s.GetComplete() {
		return fmt.Errorf("revision %d is not served: %v", resp.GetResult().GetRevision(), s)
	}
	return nil
}

// probe asks the proxy over one connection that is kept. It writes and reads the
// bytes itself: net/http would cost more than what is measured.
type probe struct {
	address string
	conn    net.Conn
	in      *bufio.Reader
}

func newProbe(port int) *probe { return &probe{address: "127.0.0.1:" + strconv.Itoa(port)} }

func (p *probe) close() {
	if p != nil && p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

func (p *probe) get(host, path string) (status int, body string, err error) {
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.conn == nil {
		if p.conn, err = net.DialTimeout("tcp", p.address, time.Second); err != nil {
			return 0, "", err
		}
		p.in = bufio.NewReader(p.conn)
	}
	_ = p.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err = io.WriteString(p.conn, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); err != nil {
		return 0, "", err
	}
	resp, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.Close {
		p.close()
	}
	return resp.StatusCode, string(b), err
}
