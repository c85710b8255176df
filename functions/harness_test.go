package functions_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// patience bounds every wait of these tests; the machine may be busy.
const patience = 60 * time.Second

// TestMain lets the test binary be the server of functions with the server
// contract.
func TestMain(m *testing.M) {
	if mode := os.Getenv("TEST_SERVER"); mode != "" {
		serve(mode)
		return
	}
	onPath()
	code := m.Run()
	if left := launch.WaitGone(launch.Descendants(os.Getpid()), patience); len(left) > 0 {
		fmt.Println("processes are left:", left)
		code = 1
	}
	os.Exit(code)
}

// onPath puts the test binary, which lies where only its user may look, on PATH, so that
// functions may run it.
func onPath() {
	binary, err := os.Executable()
	if err != nil {
		panic(err)
	}
	os.Setenv("PATH", os.Getenv("PATH")+string(os.PathListSeparator)+filepath.Dir(binary))
}

// control is the control plane's side of RunnerService.
type control struct {
	pb.UnimplementedRunnerServiceServer
	t      testing.TB
	socket string
	server *grpc.Server

	mu        sync.Mutex
	wanted    []*pb.Function
	secrets   []*pb.FunctionSecrets // sent with wanted
	versions  []*pb.DeployedVersion // of wanted
	state     *pb.RunnerState
	hellos    []string
	seen      map[int32]launch.ID // every process that was reported
	stats     *pb.RunnerStats
	sequence  uint64 // of the state, on its stream
	lines     []*pb.LogLine
	listening []string // functions whose lines are wanted
	deaf      bool     // no proxy acknowledges anything
	packages  map[string][]byte
	fetches   int
	changed   chan struct{} // closed and replaced at each change of anything
}

func newControl(t testing.TB) *control {
	c := &control{t: t, changed: make(chan struct{}), state: &pb.RunnerState{}, seen: map[int32]launch.ID{}}
	dir, err := os.MkdirTemp("", "control-") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c.socket = filepath.Join(dir, "s")
	c.listen()
	t.Cleanup(func() { c.server.Stop() })
	return c
}

// listen serves on the socket, anew after the server was stopped. A port would not always
// be free again: a child that is just being started still has the listening socket.
func (c *control) listen() {
	c.t.Helper()
	l, err := net.Listen("unix", c.socket)
	if err != nil {
		c.t.Fatal(err)
	}
	c.server = grpc.NewServer()
	pb.RegisterRunnerServiceServer(c.server, c)
	go func() { _ = c.server.Serve(l) }()
}

func (c *control) update(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	close(c.changed)
	c.changed = make(chan struct{})
}

// take takes in what the runner says. The caller holds mu.
func (c *control) take(m *pb.ConnectRequest) {
	switch {
	case m.GetState() != nil:
		c.state, c.sequence = m.GetState(), m.GetState().GetSequence()
		c.note()
	case m.GetStats() != nil:
		c.stats = m.GetStats()
	case m.GetLogs() != nil:
		c.lines = append(c.lines, m.GetLogs().GetLines()...)
	}
}

// note keeps the identity of reported processes. The caller holds mu.
func (c *control) note() {
	for _, i := range c.state.GetInstances() {
		if _, known := c.seen[i.GetPid()]; known || i.GetPid() == 0 {
			continue
		}
		if id, err := launch.Identify(int(i.GetPid())); err == nil {
			c.seen[i.GetPid()] = id
		}
	}
}

// want tells the runners what to run.
func (c *control) want(fs ...*pb.Function) { c.update(func() { c.wanted, c.versions = fs, nil }) }

// wantVersion tells the runner one function, which is version n.
func (c *control) wantVersion(f *pb.Function, n int64, served bool) {
	c.update(func() {
		c.wanted, c.versions = []*pb.Function{f}, []*pb.DeployedVersion{{Function: f.GetName(), Number: n, Served: served}}
	})
}

// Connect implements pb.RunnerServiceServer.
func (c *control) Connect(stream grpc.BidiStreamingServer[pb.ConnectRequest, pb.ConnectResponse]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetHello() == nil {
		return errors.New("the first message is not a hello")
	}
	c.update(func() { c.hellos, c.sequence = append(c.hellos, m.GetHello().GetRunner()), 0 })
	failed := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			c.update(func() { c.take(m) })
		}
	}()
	var sent []*pb.Function
	var acknowledged uint64
	var listened []string
	for first := true; ; first = false {
		c.mu.Lock()
		wanted, secrets, versions, changed, sequence, listen := c.wanted, c.secrets, c.versions, c.changed, c.sequence, c.listening
		if c.deaf {
			sequence = acknowledged
		}
		c.mu.Unlock()
		if first || !slices.Equal(wanted, sent) || sequence != acknowledged || !slices.Equal(listen, listened) {
			m := &pb.ConnectResponse{Functions: wanted, Secrets: secrets, Versions: versions, Revision: 1, AcknowledgedSequence: sequence}
			if !first && slices.Equal(wanted, sent) {
				m.Functions, m.Secrets, m.Versions, m.FunctionsUnchanged = nil, nil, nil, true
			}
			if !slices.Equal(listen, listened) {
				m.Logs = &pb.LogSubscription{Functions: listen}
			}
			if err := stream.Send(m); err != nil {
				return err
			}
			sent, acknowledged, listened = wanted, sequence, listen
		}
		select {
		case <-changed:
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// await waits until the reported state is as wanted, and returns it.
func (c *control) await(what string, ok func(*pb.RunnerState) bool) *pb.RunnerState {
	c.t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		state, changed := c.state, c.changed
		c.mu.Unlock()
		if ok(state) {
			return state
		}
		select {
		case <-changed:
		case <-deadline:
			c.t.Fatalf("%s: not within %s; state:\n%s", what, patience, protojson.Format(state))
		}
	}
}

// ready waits until n instances of a function are ready and no others exist.
func (c *control) ready(function string, n int) []*pb.Instance {
	c.t.Helper()
	s := c.await(fmt.Sprintf("%d ready instances of %s", n, function), func(s *pb.RunnerState) bool {
		of := instances(s, function)
		return len(of) == n && !slices.ContainsFunc(of, func(i *pb.Instance) bool { return i.GetState() != pb.InstanceState_INSTANCE_STATE_READY })
	})
	return instances(s, function)
}

func instances(s *pb.RunnerState, function string) []*pb.Instance {
	var out []*pb.Instance
	for _, i := range s.GetInstances() {
		if i.GetFunction() == name(function) {
			out = append(out, i)
		}
	}
	return out
}

func name(function string) string { return "projects/default/functions/" + function }

// logs keeps the records of a runner.
type logs struct {
	mu      sync.Mutex
	records []map[string]any
	changed chan struct{}
	size    int
}

// Write implements io.Writer for slog's JSON handler: one record a call.
func (l *logs) Write(b []byte) (int, error) {
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, m)
	l.size += len(b)
	close(l.changed)
	l.changed = make(chan struct{})
	return len(b), nil
}

// bytes is the size of what was logged so far.
func (l *logs) bytes() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// await waits for a record.
func (l *logs) await(t testing.TB, what string, ok func(map[string]any) bool) map[string]any {
	t.Helper()
	deadline := time.After(patience)
	for {
		l.mu.Lock()
		at, changed := slices.IndexFunc(l.records, ok), l.changed
		var found map[string]any
		if at >= 0 {
			found = l.records[at]
		}
		l.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("log record %s: not within %s", what, patience)
		}
	}
}

// runner is a runner under test.
type runner struct {
	*control
	logs  *logs
	spans *tracetest.InMemoryExporter
	root  string
	stop  func()
}

// startRunner runs a runner until the test ends; then no process of it may be
// left.
func startRunner(t testing.TB, change ...func(*functions.Config)) *runner {
	t.Helper()
	root, err := filepath.Abs("testdata/root")
	if err != nil {
		t.Fatal(err)
	}
	r := &runner{control: newControl(t), logs: &logs{changed: make(chan struct{})}, spans: tracetest.NewInMemoryExporter(), root: root}
	conn, err := grpc.NewClient("unix:"+r.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	c := functions.Config{
		Name: "test", Root: root, CacheDir: t.TempDir(), SocketDir: filepath.Join(t.TempDir(), "sockets"), Conn: conn, LambdaPython: install(toolbox.Lambda),
		FrameworkPython: install(toolbox.FrameworkPython), FrameworkNode: install(toolbox.FrameworkNode),
		Logger:         slog.New(slog.NewJSONHandler(r.logs, nil)),
		TracerProvider: sdktrace.NewTracerProvider(sdktrace.WithSyncer(r.spans)),
	}
	for _, f := range change {
		f(&c)
	}
	r.root = c.Root
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- functions.Run(ctx, c) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		conn.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		if left := launch.WaitGone(slices.Collect(maps.Values(r.seen)), patience); len(left) > 0 {
			t.Errorf("processes are left: %v", left)
		}
		if t.Failed() {
			r.dump(t)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func (r *runner) dump(t testing.TB) {
	r.logs.mu.Lock()
	defer r.logs.mu.Unlock()
	for _, m := range r.logs.records[max(0, len(r.logs.records)-40):] {
		b, _ := json.Marshal(m)
		t.Logf("%.2000s", b)
	}
}

// install is a tool as the runner asks for it.
func install(tool func(context.Context, toolbox.Options) (string, error)) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) { return tool(ctx, toolbox.Options{}) }
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// python is a function of testdata/root/py with one of its handlers.
func python(id, handler string, change ...func(*pb.Function)) *pb.Function {
	f := &pb.Function{
		Name: name(id), Source: "py", Instances: 1, Timeout: durationpb.New(20 * time.Second),
		Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON, Handler: handler}},
	}
	for _, c := range change {
		c(f)
	}
	return f
}

// self is a function whose server is this test binary.
func self(t testing.TB, id, mode string, change ...func(*pb.Function)) *pb.Function {
	t.Helper()
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := &pb.Function{
		Name: name(id), Source: "py", Instances: 1, Timeout: durationpb.New(20 * time.Second),
		Env:      map[string]string{"TEST_SERVER": mode},
		Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{binary}}},
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func env(pairs map[string]string) func(*pb.Function) {
	return func(f *pb.Function) {
		if f.Env == nil {
			f.Env = map[string]string{}
		}
		maps.Copy(f.Env, pairs)
	}
}

// silence has responses that have begun end when they pause for as long.
func silence(d time.Duration) func(*functions.Config) {
	return func(c *functions.Config) { c.Silence = d }
}

func timeout(d time.Duration) func(*pb.Function) {
	return func(f *pb.Function) { f.Timeout = durationpb.New(d) }
}

func count(n uint32) func(*pb.Function) { return func(f *pb.Function) { f.Instances = n } }

// clone is a function with changes, for slices of wanted functions are shared.
func clone(f *pb.Function, change ...func(*pb.Function)) *pb.Function {
	f = proto.CloneOf(f)
	for _, c := range change {
		c(f)
	}
	return f
}

type answer struct {
	status int
	header http.Header
	body   string
}

// whereOf is an address as it is reported, in one text: host:port, or the path of a
// Unix socket.
func whereOf(host string, port uint32) string {
	if port == 0 {
		return host
	}
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}

// dialTo connects to such an address.
func dialTo(ctx context.Context, where string) (net.Conn, error) {
	var d net.Dialer
	if filepath.IsAbs(where) {
		return d.DialContext(ctx, "unix", where)
	}
	return d.DialContext(ctx, "tcp", where)
}

// transportTo is for one client, so that no connection keeps an instance alive.
func transportTo(where string) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialTo(ctx, where) }}
}

// send sends one request to one instance.
func send(ctx context.Context, i *pb.Instance, method, path, body string, headers ...string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://instance"+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	r.Host = "shop.example.com"
	for k := 0; k < len(headers); k += 2 {
		r.Header.Add(headers[k], headers[k+1])
	}
	transport := transportTo(whereOf(i.GetAddress(), i.GetPort()))
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: patience}).Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

func mustSend(t testing.TB, i *pb.Instance, method, path, body string, headers ...string) answer {
	t.Helper()
	a, err := send(t.Context(), i, method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// any sends a request as a proxy does: a refused one goes to another instance, and
// to the next state when there is none.
func (r *runner) any(t testing.TB, function, method, path, body string) answer {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		s := r.await("a ready instance of "+function, func(s *pb.RunnerState) bool {
			return slices.ContainsFunc(instances(s, function), func(i *pb.Instance) bool { return i.GetAddress() != "" })
		})
		for _, i := range instances(s, function) {
			if i.GetState() != pb.InstanceState_INSTANCE_STATE_READY {
				continue
			}
			a, err := send(t.Context(), i, method, path, body)
			if errors.Is(err, syscall.ECONNREFUSED) || (err == nil && a.header.Get("x-penstock-refused") != "") {
				continue
			}
			if err != nil {
				t.Fatalf("%s %s: %v", method, path, err)
			}
			return a
		}
	}
	t.Fatalf("%s: every instance refuses", function)
	return answer{}
}
