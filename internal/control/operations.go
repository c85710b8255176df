package control

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// operations is the FunctionOperationsService: what functions did, what they print,
// what they answer.
type operations struct {
	pb.UnimplementedFunctionOperationsServiceServer
	core *Core
}

const (
	// maxAnswer bounds the body of an answer that InvokeFunction returns.
	maxAnswer = 16 << 20
	// invokeTimeout bounds a call when the function has no timeout of its own, and
	// invokeSpare is what it may take beside, for a start.
	invokeTimeout = 30 * time.Second
	invokeSpare   = 30 * time.Second
)

// UploadPackage implements pb.FunctionOperationsServiceServer.
func (o operations) UploadPackage(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse]) error {
	return o.core.packages.Upload(stream)
}

// function finds a function by its name.
func (o operations) function(name string) (*pb.Function, error) {
	if _, kind, _, err := gateway.KindOf(name); err != nil || kind != gateway.KindFunctions {
		return nil, status.Errorf(codes.InvalidArgument, "name: %.256q is not a valid name of a function: want projects/{project}/functions/{id}", name)
	}
	f, ok := o.core.Snapshot().Get(name).(*pb.Function)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "%s does not exist", name)
	}
	return f, nil
}

// DescribeFunction implements pb.FunctionOperationsServiceServer.
func (o operations) DescribeFunction(ctx context.Context, r *pb.DescribeFunctionRequest) (*pb.DescribeFunctionResponse, error) {
	f, err := o.function(r.GetName())
	if err != nil {
		return nil, err
	}
	s := o.core.Snapshot()
	out := &pb.DescribeFunctionResponse{Function: o.core.Annotator()(f).(*pb.Function), Versions: o.core.versions(s, f.GetName()), CurrentVersion: s.CurrentVersion(f), BuildOutput: map[string]string{}}
	for _, name := range s.Referrers(f.GetName()) {
		if _, ok := s.Get(name).(*pb.Route); ok && api.CallerOf(ctx).MayRead(name) {
			out.Routes = append(out.Routes, name)
		}
	}
	is := func(name string) bool { of, _ := gateway.FunctionOf(name); return of == f.GetName() }
	rs := o.core.runners
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, k := range rs.known {
		for _, i := range rs.instancesNow(k) {
			if is(i.GetFunction()) {
				out.Instances = append(out.Instances, i)
			}
		}
		for name, text := range k.state.GetProblemOutput() {
			if is(name) {
				out.BuildOutput[name] = text
			}
		}
	}
	for _, k := range rs.live() {
		for _, st := range k.state.GetFunctions() {
			if is(st.GetFunction()) {
				out.States = append(out.States, st)
			}
		}
		for _, st := range k.stats.GetFunctions() {
			if is(st.GetFunction()) {
				out.Stats = append(out.Stats, st)
			}
		}
		for _, d := range k.stats.GetDecisions() {
			if is(d.GetFunction()) {
				out.Decisions = append(out.Decisions, d)
			}
		}
	}
	slices.SortFunc(out.Instances, func(a, b *pb.Instance) int {
		return cmp.Or(strings.Compare(a.GetFunction(), b.GetFunction()), strings.Compare(a.GetId(), b.GetId()))
	})
	return out, nil
}

// keepStats takes over what a runner says its functions did.
func (r *runners) keepStats(name string, me *struct{}, st *pb.RunnerStats) {
	r.mu.Lock()
	if k := r.known[name]; k != nil && k.stream == me {
		k.stats = st
	}
	r.mu.Unlock()
	r.judge()
}

// StreamLogs implements pb.FunctionOperationsServiceServer.
func (o operations) StreamLogs(r *pb.StreamLogsRequest, stream grpc.ServerStreamingServer[pb.StreamLogsResponse]) error {
	f, err := o.function(r.GetName())
	if err != nil {
		return err
	}
	if len(o.core.runners.connected()) == 0 {
		why := cmp.Or(o.core.runners.gone(f.GetName()), "no runner is connected")
		if !r.GetFollow() {
			return status.Errorf(codes.Unavailable, "runners keep what functions print, and nobody can be asked: %s", why)
		}
		line := &pb.LogLine{Function: f.GetName(), Stream: "runner", Time: timestamppb.New(o.core.now()), Text: why + "; lines come when a runner connects"}
		if err := stream.Send(&pb.StreamLogsResponse{Lines: []*pb.LogLine{line}}); err != nil {
			return err
		}
	}
	sub := o.core.runners.logs.subscribe(f.GetName())
	defer sub.close()
	// Whoever waits for the header misses nothing that is printed from now on.
	if err := stream.SendHeader(nil); err != nil {
		return err
	}
	tail := int(r.GetTail())
	since := r.GetSince()
	switch {
	case tail == 0 && since != nil:
		tail = math.MaxInt32
	case tail == 0:
		tail = 100
	}
	wants := func(l *pb.LogLine) bool {
		return (r.GetRequestId() == "" || l.GetRequestId() == r.GetRequestId()) &&
			(since == nil || !l.GetTime().AsTime().Before(since.AsTime()))
	}
	// What the runners kept comes first and at once; after a moment of silence, or when
	// something newer comes, all of it is here.
	began := o.core.now()
	isNew := func(l *pb.LogLine) bool { return l.GetTime().IsValid() && l.GetTime().AsTime().After(began) }
	kept := sub.gather(stream.Context(), logSettle, isNew)
	kept = slices.DeleteFunc(kept, func(l *pb.LogLine) bool { return !wants(l) })
	slices.SortStableFunc(kept, func(a, b *pb.LogLine) int { return a.GetTime().AsTime().Compare(b.GetTime().AsTime()) })
	old := len(kept)
	if i := slices.IndexFunc(kept, isNew); i >= 0 {
		old = i
	}
	kept = kept[max(0, old-max(tail, 0)):]
	if len(kept) > 0 {
		if err := stream.Send(&pb.StreamLogsResponse{Lines: kept}); err != nil {
			return err
		}
	}
	for r.GetFollow() {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case lines := <-sub.lines:
			if lines = slices.DeleteFunc(lines, func(l *pb.LogLine) bool { return !wants(l) }); len(lines) > 0 {
				if err := stream.Send(&pb.StreamLogsResponse{Lines: lines}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// InvokeFunction implements pb.FunctionOperationsServiceServer.
func (o operations) InvokeFunction(ctx context.Context, r *pb.InvokeFunctionRequest) (*pb.InvokeFunctionResponse, error) {
	f, err := o.function(r.GetName())
	if err != nil {
		return nil, err
	}
	name, err := o.versionOf(f, r.GetVersion())
	if err != nil {
		return nil, err
	}
	network, addr := o.core.runners.entrance(name)
	if addr == "" {
		return nil, status.Errorf(codes.Unavailable, "no instance of %s takes requests: %s", name, o.core.runners.condition(f).GetMessage())
	}
	timeout := cmp.Or(f.GetTimeout().AsDuration(), invokeTimeout)
	ctx, cancel := context.WithTimeout(ctx, timeout+invokeSpare)
	defer cancel()
	req, traceID, err := invocation(ctx, r)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	resp, err := o.client(f, network, addr).Do(req)
	if err != nil {
		if gone := o.core.runners.gone(name); gone != "" {
			err = fmt.Errorf("%w; its state is %s", err, gone)
		}
		return nil, status.Errorf(codes.Unavailable, "%s did not answer: %v", name, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, status.Errorf(codes.DataLoss, "the answer of %s broke off after %d bytes: %v", name, len(body), err)
	}
	if len(body) > maxAnswer {
		return nil, status.Errorf(codes.ResourceExhausted, "the answer of %s has more than %d MiB", name, maxAnswer>>20)
	}
	out := &pb.InvokeFunctionResponse{
		Status: int32(resp.StatusCode), Body: body, TraceId: traceID,
		Milliseconds: float64(time.Since(began).Microseconds()) / 1000,
	}
	for _, k := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, v := range resp.Header[k] {
			out.Headers = append(out.Headers, &pb.HttpHeader{Name: strings.ToLower(k), Value: v})
		}
	}
	return out, nil
}

// client speaks what the function's instances speak, over a connection of its own.
func (o operations) client(f *pb.Function, network, address string) *http.Client {
	d := &net.Dialer{Timeout: 2 * time.Second}
	t := &http.Transport{DisableKeepAlives: true, DisableCompression: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, network, address)
	}}
	if contract.HTTP2(f) {
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// invocation makes the request; its trace begins here.
func invocation(ctx context.Context, r *pb.InvokeFunctionRequest) (*http.Request, string, error) {
	method := cmp.Or(r.GetMethod(), map[bool]string{true: http.MethodPost, false: http.MethodGet}[len(r.GetBody()) > 0])
	path := cmp.Or(r.GetPath(), "/")
	if !strings.HasPrefix(path, "/") {
		return nil, "", status.Errorf(codes.InvalidArgument, "path: %.128q must begin with /", path)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://function"+path, bytes.NewReader(r.GetBody()))
	if err != nil {
		return nil, "", status.Errorf(codes.InvalidArgument, "method or path: %v", err)
	}
	for i, h := range r.GetHeaders() {
		if strings.EqualFold(h.GetName(), "host") {
			req.Host = h.GetValue()
			continue
		}
		if h.GetName() == "" || strings.ContainsAny(h.GetName()+h.GetValue(), "\r\n\x00") {
			return nil, "", status.Errorf(codes.InvalidArgument, "headers[%d]: a name is needed, and no line breaks", i)
		}
		req.Header.Add(h.GetName(), h.GetValue())
	}
	if req.Header.Get("traceparent") == "" {
		sc := newSpanContext()
		propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(ctx, sc), propagation.HeaderCarrier(req.Header))
		return req, sc.TraceID().String(), nil
	}
	parts := strings.Split(req.Header.Get("traceparent"), "-")
	return req, parts[min(1, len(parts)-1)], nil
}

// versionOf is the name under which the version that a caller means is run.
func (o operations) versionOf(f *pb.Function, version string) (string, error) {
	if version == "" {
		for _, t := range f.GetTraffic() {
			if t.GetWeight() > 0 {
				return deploymentName(f, t.GetVersion()), nil
			}
		}
		return f.GetName(), nil
	}
	n, err := strconv.ParseInt(strings.TrimPrefix(version, "@"), 10, 64)
	for _, t := range f.GetTraffic() {
		if t.GetTag() == version || (err == nil && t.GetVersion() == n) {
			return deploymentName(f, t.GetVersion()), nil
		}
	}
	return "", status.Errorf(codes.FailedPrecondition, "version: %q is neither a tag nor a number in the traffic of %s, so it does not run", version, f.GetName())
}

func deploymentName(f *pb.Function, number int64) string {
	if number == 0 {
		return f.GetName()
	}
	return gateway.VersionName(f.GetName(), number)
}

// entrance is the address at which a deployment takes a request now: its activator,
// which knows what is free, else one of its instances.
func (r *runners) entrance(name string) (network, address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.known {
		for _, f := range k.state.GetFunctions() {
			if f.GetFunction() == name && reachable(f.GetActivatorAddress(), f.GetActivatorPort()) {
				return dialAddress(f.GetActivatorAddress(), f.GetActivatorPort())
			}
		}
	}
	for _, k := range r.known {
		for _, e := range k.serve[name] {
			return dialAddress(e.Address, e.Port)
		}
	}
	return "", ""
}
