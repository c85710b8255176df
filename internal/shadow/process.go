package shadow

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/grpc"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/delivery"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// process is one Envoy with the delivery that feeds it, over a socket in a folder
// that nobody else can enter.
type process struct {
	server *delivery.Server
	masked map[xds.Ref]*ledger.Quarantine // what the server spares it
	grpc   *grpc.Server
	dir    string
	limit  time.Duration // of one answer
	cmd    *exec.Cmd
	log    *tail
	client *http.Client
	// gone ends with the process.
	gone   context.Context
	closed sync.Once
}

// maxTail is how much of the log of Envoy is kept for the reason of its end.
const maxTail = 4 << 10

// launch starts a process and waits until it is connected.
func (s *Shadow) launch(ctx context.Context) (*process, error) {
	// Not below the folder of the control plane: a socket's path must be short.
	dir, err := os.MkdirTemp("", "penstock-shadow-")
	if err != nil {
		return nil, err
	}
	limit := s.limit()
	p := &process{dir: dir, limit: limit, server: s.deliver(limit), grpc: grpc.NewServer(grpc.MaxRecvMsgSize(32<<20), grpc.WaitForHandlers(true)), log: &tail{}}
	p.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", p.path("admin.sock"))
	}}}
	gone, end := context.WithCancel(context.Background())
	p.gone = gone
	sandbox, err := p.start(s.opt, sandboxes()[s.box:], end)
	if err != nil {
		end()
		p.close()
		return nil, err
	}
	if err := p.awaitConnected(ctx); err != nil {
		p.close()
		return nil, err
	}
	pid, starts := p.cmd.Process.Pid, 0
	sandbox += "; " + limits(pid)
	s.set(func(st *State) {
		st.Starts++
		st.Running, st.PID, st.Sandbox = true, pid, sandbox
		starts = st.Starts
	})
	context.AfterFunc(gone, func() {
		s.set(func(st *State) {
			if st.PID == pid {
				st.Running, st.PID = false, 0
			}
		})
	})
	s.log.Info("the shadow Envoy runs", "pid", pid, "sandbox", sandbox, "starts", starts)
	return p, nil
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// start opens the socket, writes the bootstrap and starts Envoy with as much of
// a sandbox as the host allows.
func (p *process) start(o Options, boxes []sandbox, end context.CancelFunc) (sandbox string, err error) {
	l, err := net.Listen("unix", p.path("xds.sock"))
	if err != nil {
		return "", err
	}
	p.server.Register(p.grpc)
	go func() { _ = p.grpc.Serve(l) }() // until close
	b, err := p.bootstrap()
	if err != nil {
		return "", err
	}
	if o.Change != nil {
		o.Change(b)
	}
	content, err := bootstrap.Marshal(b)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(p.path("bootstrap.json"), content, 0o600); err != nil {
		return "", err
	}
	var failed []string
	for _, box := range boxes {
		cmd := limited(o.Envoy, "-c", p.path("bootstrap.json"), "--concurrency", "1", "--log-level", "warning", "--disable-hot-restart")
		cmd.Dir, cmd.Env = p.dir, []string{}
		cmd.Stdout, cmd.Stderr = p.log, p.log
		if err = box.apply(cmd, p.dir); err == nil {
			err = launch.Start(cmd)
		}
		if err != nil {
			failed = append(failed, box.name+": "+err.Error())
			continue
		}
		p.cmd = cmd
		go func() { _ = cmd.Wait(); end() }()
		name := box.name
		if len(failed) > 0 {
			name += " (not: " + strings.Join(failed, "; ") + ")"
		}
		return name, nil
	}
	return "", fmt.Errorf("start %s: %w", o.Envoy, err)
}

// bootstrap is the fleet's, but for the way to the control plane.
func (p *process) bootstrap() (*bootstrapv3.Bootstrap, error) {
	b, err := bootstrap.New(bootstrap.Config{
		NodeID: viewName, XDSAddresses: []string{"127.0.0.1:9"}, AdminSocket: p.path("admin.sock"), SDSDir: p.dir,
		CAFile: p.path("none"), CertFile: p.path("none"), KeyFile: p.path("none"),
	})
	if err != nil {
		return nil, err
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		if c.GetName() == bootstrap.XDSCluster {
			c.TransportSocket = nil
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
			c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: c.GetName(), Endpoints: []*endpointv3.LocalityLbEndpoints{{
				LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: p.path("xds.sock")}}},
				}}}},
			}}}
		}
	}
	return b, nil
}

// awaitConnected waits until Envoy is up and connected to the delivery.
func (p *process) awaitConnected(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	signals, stop := p.server.Follow()
	defer stop()
	for len(p.server.Proxies()) == 0 {
		select {
		case <-signals:
		case <-p.gone.Done():
			return errors.New("it ended at its start: " + p.end())
		case <-ctx.Done():
			return fmt.Errorf("it was not up within %s: %s", startLimit, p.log)
		}
	}
	return nil
}

// ready asks the main thread for a sign of life.
func (p *process) ready(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/ready", nil)
	if err != nil {
		return false
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return true
}

func (p *process) alive() bool { return p.cmd != nil && p.gone.Err() == nil }

// end says how the process ended.
func (p *process) end() string {
	how := "its stream ended"
	if p.cmd != nil && p.gone.Err() != nil && p.cmd.ProcessState != nil {
		how = p.cmd.ProcessState.String()
	}
	if log := p.log.String(); log != "" {
		how += ": " + log
	}
	return how
}

// close ends the process at once and everything that belongs to it.
func (p *process) close() {
	p.closed.Do(func() {
		if p.cmd != nil {
			_ = launch.Signal(p.cmd, syscall.SIGKILL) // a hung one ends by nothing less
			<-p.gone.Done()
		}
		// First the streams: that tells what was not answered.
		p.grpc.Stop()
		p.server.Close()
		p.client.CloseIdleConnections()
		_ = os.RemoveAll(p.dir)
	})
}

// tail keeps the end of a log.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-maxTail):]
	return len(b), nil
}

// String is the last line that says something.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(t.b), []byte("\n"))
	return strings.ToValidUTF8(string(lines[len(lines)-1]), "")
}
