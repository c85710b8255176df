package spans

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // SDKs may compress
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// endpoint is the receiver of one instance: OTLP over HTTP and over gRPC at one address.
type endpoint struct {
	receiver *Receiver
	source   Source
	budget   *budget
	// room has a place for each request that is read.
	room chan struct{}
	// work bounds what the runner reads for it, also of what is not valid.
	work *rate.Limiter

	mu   sync.Mutex
	lost int
	told time.Time
}

type endpointKey struct{}

// Serve takes what comes by a listener for the spans of one instance, until the listener
// or what it returns is closed. owns reports whether a connection is the instance's, where
// others could reach the listener, too; nil: all are.
func (r *Receiver) Serve(l net.Listener, s Source, owns func(net.Conn) bool) (stop func()) {
	e := r.endpoint(s)
	server := &http.Server{
		Handler: e, Protocols: new(http.Protocols),
		ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: 16, MaxReceiveBufferPerConnection: 128 << 10, MaxReceiveBufferPerStream: 64 << 10},
		BaseContext: func(net.Listener) context.Context { return context.WithValue(context.Background(), endpointKey{}, e) },
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	if owns != nil {
		server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, ownerKey{}, sync.OnceValue(func() bool { return owns(c) }))
		}
	}
	go func() { _ = server.Serve(&bounded{Listener: l, room: make(chan struct{}, maxConnections)}) }()
	return func() { server.Close() }
}

func (r *Receiver) endpoint(s Source) *endpoint {
	return &endpoint{
		receiver: r, source: s, budget: newBudget(ofInstance), room: make(chan struct{}, maxRequests), work: rate.NewLimiter(workBytes, workBurst),
	}
}

type ownerKey struct{}

// ServeHTTP implements http.Handler.
func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if owned, ok := r.Context().Value(ownerKey{}).(func() bool); ok && !owned() {
		http.Error(w, "this endpoint is for one instance of a function only", http.StatusForbidden)
		return
	}
	select {
	case e.room <- struct{}{}:
		defer func() { <-e.room }()
	case <-r.Context().Done():
		return
	}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("content-type"), "application/grpc") {
		e.receiver.grpc.ServeHTTP(w, r)
		return
	}
	e.serveHTTP(w, r)
}

// errHeavy is the error of a request with too many parts.
var errHeavy = fmt.Errorf("a request may have %d MiB when it is decoded, which a few hundred thousand spans, attributes and values have: send smaller batches", maxDecoded>>20)

// decode reads a body, when there is room for what it becomes. Whoever calls done, after
// its last use, gives the room back. Senders of more than the runner may spend on them
// wait, which takes places of their own only.
func (e *endpoint) decode(ctx context.Context, f format, body []byte) (req *collectortracev1.ExportTraceServiceRequest, done func(), err error) {
	if err := e.work.WaitN(ctx, len(body)+1); err != nil {
		return nil, nil, err
	}
	weight := f.weigh(body)
	if weight > maxDecoded {
		return nil, nil, errHeavy
	}
	if err := e.receiver.decoded.Acquire(ctx, int64(weight)); err != nil {
		return nil, nil, err
	}
	done = func() { e.receiver.decoded.Release(int64(weight)) }
	req = &collectortracev1.ExportTraceServiceRequest{}
	if err := f.unmarshal(body, req); err != nil {
		done()
		return nil, nil, fmt.Errorf("the body is not a valid ExportTraceServiceRequest: %w", err)
	}
	return req, done, nil
}

// service is OTLP over gRPC, with the body of a request as it came: it is decoded where
// the endpoint is known, which is in the context.
var service = grpc.ServiceDesc{
	ServiceName: collectortracev1.TraceService_ServiceDesc.ServiceName,
	Methods:     []grpc.MethodDesc{{MethodName: "Export", Handler: export}},
}

func export(_ any, ctx context.Context, receive func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var body []byte
	if err := receive(&body); err != nil {
		return nil, err
	}
	e, ok := ctx.Value(endpointKey{}).(*endpoint)
	if !ok {
		return nil, status.Error(codes.Internal, "the instance is not known")
	}
	req, done, err := e.decode(ctx, binary, body)
	switch {
	case errors.Is(err, errHeavy):
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	case err != nil:
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	defer done()
	out := e.take(ctx, req)
	if out.err != nil {
		return nil, status.Error(codes.Unavailable, unavailable)
	}
	return out.response(), nil
}

// unavailable is for senders: where the collector is is not theirs to know.
const unavailable = "the collector of traces does not answer"

// strict reads what strangers send: no unknown fields, which a collector might read in
// another way, and no depth that it might refuse.
var strict = proto.UnmarshalOptions{DiscardUnknown: true, RecursionLimit: 32}

// codec is that of the gRPC server: requests stay as they came.
type codec struct{}

// Marshal implements encoding.CodecV2.
func (codec) Marshal(v any) (mem.BufferSlice, error) {
	b, err := proto.Marshal(v.(proto.Message))
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

// Unmarshal implements encoding.CodecV2.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return "proto" }

// bounded bounds how many connections are open; others are closed at once.
type bounded struct {
	net.Listener
	room chan struct{}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case b.room <- struct{}{}:
			return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.room })}, nil
		default:
			c.Close()
		}
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
