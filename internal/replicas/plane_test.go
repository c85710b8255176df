package replicas

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/toolbox"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

// patience bounds every wait for something that must happen.
const patience = 60 * time.Second

// binary is penstock, built from this tree.
var binary string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "replicas-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	root, err := toolbox.RepoRoot()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary = filepath.Join(dir, "penstock")
	build := exec.Command("go", "build", "-o", binary, "./cmd/penstock")
	build.Dir, build.Stderr = root, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "build penstock:", err)
		return 1
	}
	return m.Run()
}

// until polls a condition that must come true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// process is a penstock process.
type process struct {
	cmd    *exec.Cmd
	exited chan struct{}
	mu     sync.Mutex
	log    bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

func (p *process) kill(t *testing.T) {
	t.Helper()
	if err := launch.Signal(p.cmd, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	<-p.exited
}

func spawn(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{exited: make(chan struct{})}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	if err := launch.Start(p.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		_ = launch.Signal(p.cmd, syscall.SIGTERM)
		select {
		case <-p.exited:
		case <-time.After(15 * time.Second):
			t.Errorf("%s did not end within 15 s of SIGTERM", name)
			p.kill(t)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", name, p.text())
		}
	})
	return p
}

// replica is one `penstock control`.
type replica struct {
	*process
	name, api, xds string
	wire           *wire // to etcd

	config pb.ConfigServiceClient
	proxy  pb.ProxyServiceClient
}

// cluster is three replicas on one etcd.
type cluster struct {
	whole    *testing.T // what is started lives as long
	dir      string
	seal     string
	etcd     *etcd
	ca       *pki.CA
	replicas []*replica
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{whole: t, dir: t.TempDir()}
	c.etcd = startEtcd(t, filepath.Join(c.dir, "etcd"))
	c.seal = filepath.Join(c.dir, "seal.key")
	if _, err := store.LoadOrCreateSealKey(c.seal); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.ca, err = pki.OpenCA(c.pki()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c"} {
		r := &replica{name: name, wire: newWire(t, c.etcd.address), api: address(t), xds: address(t)}
		c.copyCA(t, filepath.Join(c.dir, name, "pki"))
		conn, err := grpc.NewClient(r.api, grpc.WithTransportCredentials(insecure.NewCredentials()), connect.Owner(filepath.Join(c.dir, name)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		r.config, r.proxy = pb.NewConfigServiceClient(conn), pb.NewProxyServiceClient(conn)
		c.replicas = append(c.replicas, r)
	}
	return c
}

// start starts replicas and waits until they are ready.
func (c *cluster) start(t *testing.T, replicas ...*replica) {
	t.Helper()
	for _, r := range replicas {
		r.process = spawn(c.whole, "replica "+r.name, "control", "--data-dir", filepath.Join(c.dir, r.name), "--seal-key-file", c.seal,
			"--api-listen", r.api, "--xds-listen", r.xds, "--http-listen", address(t),
			"--etcd-endpoints", "https://"+r.wire.address(), "--etcd-cacert", c.etcd.ca, "--etcd-cert", c.etcd.crt, "--etcd-key", c.etcd.key)
	}
	for _, r := range replicas {
		until(t, "replica "+r.name+" to be ready", func() bool { return strings.Contains(r.text(), "control plane is ready") })
	}
}

func address(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(envoytest.FreePort(t)))
}

func (c *cluster) pki() string { return filepath.Join(c.dir, "pki") }

// copyCA gives a replica the CA, as an operator does.
func (c *cluster) copyCA(t *testing.T, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.crt", "ca.key"} {
		b, err := os.ReadFile(filepath.Join(c.pki(), name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// addresses are where proxies and runners reach the replicas.
func (c *cluster) addresses() (out []string) {
	for _, r := range c.replicas {
		out = append(out, r.xds)
	}
	return out
}

// envoy starts a proxy of a gateway.
func (c *cluster) envoy(t *testing.T, gw, name string) *envoytest.Envoy {
	t.Helper()
	cert, key, err := c.ca.EnsureFiles(c.pki(), "proxy-"+name, pki.Request{SPIFFE: pki.ProxyID("default", gw, name)})
	if err != nil {
		t.Fatal(err)
	}
	e := envoytest.Start(t, envoytest.Options{Config: bootstrap.Config{
		NodeID: name, XDSAddresses: c.addresses(),
		CAFile: filepath.Join(c.pki(), "ca.crt"), CertFile: cert, KeyFile: key,
	}})
	e.WaitLive(t)
	return e
}

// home is the live replica that a proxy, or a runner, connected to last.
func (c *cluster) home(t *testing.T, kind, name string) *replica {
	t.Helper()
	var found *replica
	until(t, kind+" "+name+" to be connected", func() bool {
		for _, r := range c.replicas {
			if r.serves(kind, name) {
				found = r
			}
		}
		return found != nil
	})
	return found
}

func (r *replica) alive() bool {
	if r.process == nil {
		return false
	}
	select {
	case <-r.exited:
		return false
	default:
		return true
	}
}

// serves goes by the log, as the API tells of all replicas alike.
func (r *replica) serves(kind, name string) bool {
	if !r.alive() {
		return false
	}
	on := false
	for line := range strings.Lines(r.text()) {
		if !strings.Contains(line, kind+`=`+name) && !strings.Contains(line, `"`+kind+`":"`+name+`"`) {
			continue
		}
		switch {
		case strings.Contains(line, kind+" connected"):
			on = true
		case strings.Contains(line, kind+" disconnected"):
			on = false
		}
	}
	return on
}

// without are the live replicas but for some.
func (c *cluster) without(not ...*replica) (out []*replica) {
next:
	for _, r := range c.replicas {
		for _, n := range not {
			if r == n {
				continue next
			}
		}
		if r.alive() {
			out = append(out, r)
		}
	}
	return out
}

// resources reads YAML, as files of the user are read.
func resources(t *testing.T, yaml string) (out []*pb.Resource) {
	t.Helper()
	objects, errs := file.Decode("test.yaml", []byte(yaml))
	if len(errs) > 0 {
		t.Fatalf("%s\n%s", errs.Error(), yaml)
	}
	for _, o := range objects {
		out = append(out, gateway.ToResource(o))
	}
	return out
}

// apply writes at a replica, waits for all proxies of all replicas, and tells who
// serves it.
func (r *replica) apply(ctx context.Context, t *testing.T, yaml string) (*pb.ServingReport, error) {
	t.Helper()
	res, err := r.config.Apply(ctx, &pb.ApplyRequest{Resources: resources(t, yaml)})
	return res.GetResult().GetServing(), err
}

// proxies are all proxies that a replica tells of, by name.
func (r *replica) proxies(t *testing.T) map[string]*pb.Proxy {
	t.Helper()
	res, err := r.proxy.ListProxies(t.Context(), &pb.ListProxiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*pb.Proxy{}
	for _, p := range res.GetProxies() {
		if out[p.GetName()] != nil {
			t.Errorf("replica %s lists %s twice", r.name, p.GetName())
		}
		out[p.GetName()] = p
	}
	return out
}
