package control

import (
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
	"github.com/penstock-gateway/penstock/internal/control/change"
)

func function(env string, traffic ...*pb.Traffic) *pb.Function {
	return &pb.Function{
		Name: testFunction, Source: "f", Env: map[string]string{"V": env}, Traffic: traffic,
		Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON, Handler: "a.b"}},
	}
}

func (p *plane) put(t *testing.T, objects ...gateway.Object) (int64, error) {
	t.Helper()
	req := &pb.ApplyRequest{Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}}
	for _, o := range objects {
		req.Resources = append(req.Resources, gateway.ToResource(o))
	}
	resp, err := pb.NewConfigServiceClient(p.conn).Apply(t.Context(), req)
	return resp.GetResult().GetRevision(), err
}

func (p *plane) mustPut(t *testing.T, objects ...gateway.Object) int64 {
	t.Helper()
	n, err := p.put(t, objects...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (p *plane) versions() (out []int64) {
	for _, v := range p.core.Snapshot().Versions(testFunction) {
		out = append(out, v.GetNumber())
	}
	return out
}

// TestVersions: a change of what runs begins a version, a change of how many does
// not; versions do not change, those that get requests are kept.
func TestVersions(t *testing.T) {
	p := start(t, t.TempDir())
	first := p.mustPut(t, function("1"))
	scaled := function("1")
	scaled.Instances = 3
	p.mustPut(t, scaled)
	second := p.mustPut(t, function("2"))
	if got := p.versions(); len(got) != 2 || got[0] != second || got[1] != first {
		t.Fatalf("versions %v, want %d and %d", got, second, first)
	}
	// Back to what was: the old version, not a new one.
	p.mustPut(t, function("1"))
	if got := p.versions(); len(got) != 2 {
		t.Errorf("versions %v", got)
	}
	_, err := p.put(t, function("2", &pb.Traffic{Version: 99, Weight: 1}))
	wantCode(t, "traffic to a version that is not there", err, codes.InvalidArgument, "no such version: it has "+fmt.Sprint(second)+", "+fmt.Sprint(first))
	v := p.core.Snapshot().Versions(testFunction)[0]
	_, err = p.put(t, proto.CloneOf(v))
	wantCode(t, "a version that is written", err, codes.InvalidArgument, "never change")

	// The route is split among them.
	p.mustPut(t, function("2", &pb.Traffic{Version: first, Weight: 3}, &pb.Traffic{Weight: 1, Tag: "new"}),
		&pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 8080, Protocol: pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP}}},
		routeTo("split", ""), routeTo("tagged", "new"))
	want := map[string]string{"split": fmt.Sprintf("%s@%d=3 %s=1 ", testFunction, first, testFunction), "tagged": testFunction + "=1 "}
	for _, h := range p.core.Snapshot().Hosts("projects/default/gateways/g", "http") {
		for _, e := range h.Entries {
			got := ""
			for _, b := range e.Backends {
				got += fmt.Sprintf("%s=%d ", b.Name(), b.Weight)
			}
			if id := e.Route.GetName()[strings.LastIndexByte(e.Route.GetName(), '/')+1:]; got != want[id] {
				t.Errorf("%s goes to %s, want %s", id, got, want[id])
			}
		}
	}
	_, err = p.put(t, routeTo("other", "old"))
	wantCode(t, "a tag that is not there", err, codes.InvalidArgument, "a tag of its traffic, and it has new")

	// Many later ones push out all but those that are kept and used.
	for i := range change.VersionsKept + 5 {
		p.mustPut(t, function(fmt.Sprint("x", i), &pb.Traffic{Version: first, Weight: 3}, &pb.Traffic{Weight: 1, Tag: "new"}))
	}
	got := p.versions()
	if len(got) != change.VersionsKept+1 || got[len(got)-1] != first {
		t.Errorf("versions %v, want %d and %d", got, change.VersionsKept, first)
	}

	// A rollback of the configuration brings what it needs.
	if _, err := pb.NewConfigServiceClient(p.conn).Rollback(t.Context(), &pb.RollbackRequest{Revision: second}); err != nil {
		t.Fatal(err)
	}
	if s := p.core.Snapshot(); s.CurrentVersion(s.Get(testFunction).(*pb.Function)) != second {
		t.Errorf("after the rollback it is version %d, want %d", s.CurrentVersion(s.Get(testFunction).(*pb.Function)), second)
	}
	for _, name := range []string{"split", "tagged"} {
		if p.core.Snapshot().Get("projects/default/routes/"+name) != nil {
			t.Errorf("route %s is there after the rollback", name)
		}
	}
	if _, err := pb.NewFunctionServiceClient(p.conn).DeleteFunction(t.Context(), &pb.DeleteFunctionRequest{Name: testFunction, Options: &pb.WriteOptions{Wait: pb.WaitMode_WAIT_MODE_NONE}}); err != nil {
		t.Fatal(err)
	}
	if got := p.versions(); len(got) != 0 {
		t.Errorf("versions of a function that was deleted: %v", got)
	}
}

func routeTo(id, subset string) *pb.Route {
	return &pb.Route{Name: "projects/default/routes/" + id, Rules: []*pb.RouteRule{{
		Matches: []*pb.RouteMatch{{Path: &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: "/" + id}}}},
		Action:  &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "functions/f", Subset: subset}}}},
	}}}
}

// TestMovingRequests: requests that move to an older version are served by the newer
// one until its instances are ready, and only then does that one go.
func TestMovingRequests(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	first := p.mustPut(t, function("1"))
	p.mustPut(t, function("2"))
	stream, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	wanted := func(want ...string) {
		t.Helper()
		for {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range m.GetFunctions() {
				got = append(got, f.GetName())
			}
			if !m.GetFunctionsUnchanged() {
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("wanted %v, want %v", got, want)
				}
				return
			}
		}
	}
	wanted(testFunction)
	report(t, stream, 1000)
	until(t, "the instance", func() bool { return len(p.core.runners.endpoints(testFunction)) == 1 })

	old := fmt.Sprintf("%s@%d", testFunction, first)
	p.mustPut(t, function("2", &pb.Traffic{Version: first, Weight: 1}))
	wanted(old, testFunction)
	if e := p.core.runners.endpoints(old); len(e) != 1 || e[0].Port != 1000 {
		t.Errorf("before it is ready: %v", e)
	}
	st := &pb.RunnerState{Instances: []*pb.Instance{
		{Function: testFunction, Id: "i", Address: "127.0.0.1", Port: 1000, State: pb.InstanceState_INSTANCE_STATE_READY},
		{Function: old, Id: "j", Address: "127.0.0.1", Port: 2000, State: pb.InstanceState_INSTANCE_STATE_READY},
	}}
	if err := stream.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_State{State: st}}); err != nil {
		t.Fatal(err)
	}
	wanted(old)
	if e := p.core.runners.endpoints(old); len(e) != 1 || e[0].Port != 2000 {
		t.Errorf("when it is ready: %v", e)
	}
}

func zipOf(t *testing.T, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(name)
	if err == nil {
		_, err = io.WriteString(w, strings.Repeat("x", 100))
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (p *plane) upload(t *testing.T, digest string, parts ...[]byte) (*pb.UploadPackageResponse, error) {
	t.Helper()
	stream, err := pb.NewFunctionOperationsServiceClient(p.conn).UploadPackage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range parts {
		if err := stream.Send(&pb.UploadPackageRequest{Digest: digest, Chunk: part}); err != nil {
			break
		}
		digest = ""
	}
	return stream.CloseAndRecv()
}

// TestPackages: what is uploaded is checked and kept by its digest, and only runners
// get it.
func TestPackages(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	good := zipOf(t, "app.py")
	digest, err := archive.Digest(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	named := function("1")
	named.Source = digest
	_, err = p.put(t, named)
	wantCode(t, "a function whose package is not here", err, codes.InvalidArgument, "upload it first")
	bad := zipOf(t, "../app.py")
	badDigest, err := archive.Digest(bytes.NewReader(bad))
	if err != nil {
		t.Fatal(err)
	}
	for what, row := range map[string]struct {
		digest string
		bytes  []byte
		text   string
	}{
		"no digest":        {"", good, "is not a digest"},
		"traversal":        {digest[:len(digest)-64] + strings.Repeat("0", 64), good, "but what came has"},
		"another's digest": {badDigest, bad, "leads out"},
	} {
		_, err := p.upload(t, row.digest, row.bytes)
		wantCode(t, what, err, codes.InvalidArgument, row.text)
	}
	up, err := p.upload(t, digest, good[:50], good[50:])
	if err != nil || up.GetSize() != int64(len(good)) || up.GetKnown() {
		t.Fatalf("%v, %v", up, err)
	}
	if up, err = p.upload(t, digest, good[:1]); err != nil || !up.GetKnown() {
		t.Errorf("the second time: %v, %v", up, err)
	}
	p.mustPut(t, named)

	if got, err := fetch(t, p, dir, runnerIdentity+"a", digest); err != nil || !bytes.Equal(got, good) {
		t.Errorf("%d bytes (%v), want %d", len(got), err, len(good))
	}
	_, err = fetch(t, p, dir, "spiffe://penstock.local/proxy/default/-/edge", digest)
	wantCode(t, "a proxy that asks for a package", err, codes.PermissionDenied, "only runners")
	_, err = fetch(t, p, dir, runnerIdentity+"a", badDigest)
	wantCode(t, "a package that is not here", err, codes.NotFound, "upload it again")
}

func fetch(t *testing.T, p *plane, dir, spiffe, digest string) ([]byte, error) {
	t.Helper()
	stream, err := pb.NewRunnerServiceClient(p.dialAs(t, dir+"/pki", spiffe)).FetchPackage(t.Context(), &pb.FetchPackageRequest{Digest: digest})
	if err != nil {
		return nil, err
	}
	var out []byte
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		out = append(out, m.GetChunk()...)
	}
}

func TestVerdict(t *testing.T) {
	stats := func(requests, errs uint64, mean float64) *pb.FunctionStats {
		return &pb.FunctionStats{Requests: requests, Errors: errs, MeanT: mean / 2, MeanR: mean / 2}
	}
	rule := &pb.AutoRollback{MaxErrorRate: 0.1, MaxLatencyFactor: 2, MinRequests: 10}
	for _, row := range []struct {
		what        string
		before, now *pb.FunctionStats
		want        string
	}{
		{"too few", stats(100, 0, 1), stats(109, 9, 1), ""},
		{"as good", stats(100, 50, 1), stats(200, 51, 1.5), ""},
		{"errors", stats(100, 0, 1), stats(200, 11, 1), "11.0 % of 100 requests failed"},
		{"errors of before", stats(100, 90, 1), stats(200, 100, 1), ""},
		{"slow", stats(100, 0, 0.1), stats(200, 0, 0.3), "3.0 times the 100.0 ms of version 1"},
		{"the first version", nil, stats(50, 0, 3), ""},
		{"the runner began anew", stats(100, 0, 1), stats(20, 20, 1), "100.0 % of 20"},
		{"nothing known", nil, nil, ""},
	} {
		ro := &rollout{version: 2, previous: 1, before: row.before}
		if got := ro.verdict(rule, row.now); (row.want == "") != (got == "") || !strings.Contains(got, row.want) {
			t.Errorf("%s: %q, want %q", row.what, got, row.want)
		}
	}
}

// TestAutoRollback: a version that fails is taken back by itself, and the status says
// why.
func TestAutoRollback(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	with := func(v string) *pb.Function {
		f := function(v)
		f.AutoRollback = &pb.AutoRollback{MaxErrorRate: 0.5, MinRequests: 5}
		return f
	}
	first := p.mustPut(t, with("1"))
	stream, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	tell := func(requests, errs uint64) {
		t.Helper()
		st := &pb.RunnerStats{Functions: []*pb.FunctionStats{{Function: testFunction, Requests: requests, Errors: errs}}}
		if err := stream.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Stats{Stats: st}}); err != nil {
			t.Fatal(err)
		}
	}
	tell(100, 100) // of the first version, which nothing can be better than
	until(t, "the statistics", func() bool {
		p.core.runners.mu.Lock()
		defer p.core.runners.mu.Unlock()
		return p.core.runners.statsOf(testFunction) != nil
	})
	p.mustPut(t, with("2"))
	tell(110, 108)
	until(t, "the rollback", func() bool {
		f := p.core.Snapshot().Get(testFunction).(*pb.Function)
		return len(f.GetTraffic()) == 1 && f.GetTraffic()[0].GetVersion() == first
	})
	d, err := pb.NewFunctionOperationsServiceClient(p.conn).DescribeFunction(t.Context(), &pb.DescribeFunctionRequest{Name: testFunction})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, c := range d.GetFunction().GetStatus().GetConditions() {
		found = found || c.GetType() == "RolledBack" && strings.Contains(c.GetMessage(), "80.0 % of 10 requests failed")
	}
	if !found || len(d.GetVersions()) != 2 {
		t.Errorf("%v", d)
	}
}

// TestLogs: runners send the lines of functions that somebody reads, and readers get
// each line once.
func TestLogs(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	p.mustPut(t, function("1"))
	runner, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	until(t, "the runner to be connected", func() bool { return len(p.core.runners.connected()) == 1 })
	ctx := t.Context()
	reader, err := pb.NewFunctionOperationsServiceClient(p.conn).StreamLogs(ctx, &pb.StreamLogsRequest{Name: testFunction, Follow: true, Tail: 2})
	if err != nil {
		t.Fatal(err)
	}
	// Before anything is printed, it is told that nothing will be missed.
	if _, err := reader.Header(); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := runner.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if f := m.GetLogs().GetFunctions(); len(f) == 1 && f[0] == testFunction {
			break
		}
	}
	send := func(lines ...*pb.LogLine) {
		t.Helper()
		if err := runner.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Logs{Logs: &pb.RunnerLogs{Lines: lines}}}); err != nil {
			t.Fatal(err)
		}
	}
	line := func(n uint64) *pb.LogLine {
		return &pb.LogLine{Function: testFunction, Instance: "i", Text: fmt.Sprint("line ", n), Sequence: n}
	}
	send(line(1), line(2), line(3), &pb.LogLine{Function: testFunction + "x", Text: "another's", Sequence: 4})
	read := func() (out string) {
		t.Helper()
		m, err := reader.Recv()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.GetLines() {
			out += l.GetText() + ";"
		}
		return out
	}
	if got := read(); got != "line 2;line 3;" {
		t.Errorf("the last two: %q", got)
	}
	send(line(2), line(3), line(5))
	if got := read(); got != "line 5;" {
		t.Errorf("what follows: %q", got)
	}
	stream, err := pb.NewFunctionOperationsServiceClient(p.conn).StreamLogs(ctx, &pb.StreamLogsRequest{Name: "projects/default/functions/none"})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "a function that is not there", err, codes.NotFound, "does not exist")
}
