package runnertest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// patience bounds every wait of the suite; the machine may be busy.
const patience = 60 * time.Second

// plane is the control plane's side of RunnerService, for one runner. It notes all
// that the runner says, and what of it no control plane could live with.
type plane struct {
	pb.UnimplementedRunnerServiceServer
	t      *testing.T
	socket string
	server *grpc.Server

	mu        sync.Mutex
	wanted    []*pb.Function
	secrets   []*pb.FunctionSecrets
	revision  int64    // of wanted
	deaf      bool     // no proxy acknowledges anything
	listening []string // functions whose lines are wanted
	packages  map[string][]byte
	fetches   int

	hellos   []string
	states   []*pb.RunnerState // of all streams, the newest last
	sequence uint64            // of the newest, on its stream
	stats    *pb.RunnerStats
	lines    []*pb.LogLine
	faults   []string
	changed  chan struct{} // closed and replaced at each change of anything
}

func newPlane(t *testing.T) *plane {
	p := &plane{t: t, changed: make(chan struct{}), packages: map[string][]byte{}}
	dir, err := os.MkdirTemp("", "control-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.socket = filepath.Join(dir, "s")
	p.listen()
	t.Cleanup(func() {
		p.server.Stop()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, f := range p.faults {
			t.Errorf("against the protocol: %s", f)
		}
	})
	return p
}

// listen serves on the socket, anew after the server was stopped. A port would not always
// be free again: a child that is just being started still has the listening socket.
func (p *plane) listen() {
	p.t.Helper()
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		p.t.Fatal(err)
	}
	p.server = grpc.NewServer()
	pb.RegisterRunnerServiceServer(p.server, p)
	go func() { _ = p.server.Serve(l) }()
}

// update changes what the runner is told, or what it has said.
func (p *plane) update(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

// want tells the runner all that it is to run, as of a new revision, which is
// returned.
func (p *plane) want(fs ...*pb.Function) (revision int64) {
	p.update(func() {
		p.wanted = fs
		p.revision++
		revision = p.revision
	})
	return revision
}

// await waits until ok, which is called with mu held.
func (p *plane) await(what string, ok func() bool) {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		p.mu.Lock()
		done, changed := ok(), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.t.Fatalf("%s: not within %s; %d hellos, state:\n%s", what, patience, len(p.hellos), protojson.Format(p.state()))
		}
	}
}

// state is the newest. The caller holds mu.
func (p *plane) state() *pb.RunnerState {
	if len(p.states) == 0 {
		return &pb.RunnerState{}
	}
	return p.states[len(p.states)-1]
}

// Connect implements pb.RunnerServiceServer.
func (p *plane) Connect(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	p.update(func() {
		if m.GetHello() == nil {
			p.faults = append(p.faults, fmt.Sprintf("the first message of a stream is not a hello: %v", m))
		}
		p.hellos, p.sequence = append(p.hellos, m.GetHello().GetRunner()), 0
	})
	failed := make(chan error, 1)
	go func() { failed <- p.receive(stream) }()
	told := int64(-1)
	var acknowledged uint64
	var listened []string
	for {
		p.mu.Lock()
		m := &pb.ConnectResponse{Functions: p.wanted, Secrets: p.secrets, Revision: p.revision, FunctionsUnchanged: p.revision == told, AcknowledgedSequence: p.sequence}
		listen, changed := p.listening, p.changed
		if p.deaf {
			m.AcknowledgedSequence = acknowledged
		}
		p.mu.Unlock()
		if m.GetFunctionsUnchanged() {
			m.Functions, m.Secrets = nil, nil
		}
		if !slices.Equal(listen, listened) {
			m.Logs = &pb.LogSubscription{Functions: listen}
		}
		if !m.GetFunctionsUnchanged() || m.GetLogs() != nil || m.GetAcknowledgedSequence() != acknowledged {
			if err := stream.Send(m); err != nil {
				return err
			}
			told, acknowledged, listened = m.GetRevision(), m.GetAcknowledgedSequence(), listen
		}
		select {
		case <-changed:
		case err := <-failed:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (p *plane) receive(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		p.update(func() {
			switch {
			case m.GetState() != nil:
				p.take(m.GetState())
			case m.GetStats() != nil:
				p.stats = m.GetStats()
			case m.GetLogs() != nil:
				p.lines = append(p.lines, m.GetLogs().GetLines()...)
			default:
				p.faults = append(p.faults, fmt.Sprintf("a message that is neither state nor stats nor logs: %v", m))
			}
		})
	}
}

// take notes a state, and what must hold for each. The caller holds mu.
func (p *plane) take(s *pb.RunnerState) {
	fault := func(format string, args ...any) {
		p.faults = append(p.faults, fmt.Sprintf(format, args...))
	}
	if s.GetSequence() != p.sequence+1 {
		fault("the state after %d has the sequence %d", p.sequence, s.GetSequence())
	}
	ids := map[string]bool{}
	for _, i := range s.GetInstances() {
		if i.GetId() == "" || ids[i.GetId()] {
			fault("two instances, or one without an id: %v", i)
		}
		ids[i.GetId()] = true
		switch i.GetState() {
		case pb.InstanceState_INSTANCE_STATE_READY, pb.InstanceState_INSTANCE_STATE_DRAINING:
			if i.GetAddress() == "" || i.GetPort() == 0 && !filepath.IsAbs(i.GetAddress()) {
				fault("an instance that serves, without an address: %v", i)
			}
		case pb.InstanceState_INSTANCE_STATE_UNSPECIFIED:
			fault("an instance without a state: %v", i)
		}
	}
	p.states, p.sequence = append(p.states, s), s.GetSequence()
}

// FetchPackage implements pb.RunnerServiceServer.
func (p *plane) FetchPackage(r *pb.FetchPackageRequest, stream grpc.ServerStreamingServer[pb.FetchPackageResponse]) error {
	p.mu.Lock()
	b, ok := p.packages[r.GetDigest()]
	p.fetches++
	p.mu.Unlock()
	if !ok {
		return status.Errorf(codes.NotFound, "there is no package %s", r.GetDigest())
	}
	for part := range slices.Chunk(b, 64<<10) {
		if err := stream.Send(&pb.FetchPackageResponse{Chunk: part}); err != nil {
			return err
		}
	}
	return nil
}
