package functions_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// talk is a gRPC service of strings: what is said chooses what it does.
var talk = grpc.ServiceDesc{
	ServiceName: "test.Talk", HandlerType: (*any)(nil),
	Methods: []grpc.MethodDesc{{MethodName: "Say", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in wrapperspb.StringValue
		if err := decode(&in); err != nil {
			return nil, err
		}
		switch in.GetValue() {
		case "exit":
			os.Exit(3)
		case "hang":
			<-ctx.Done()
			return nil, ctx.Err()
		case "fail":
			return nil, status.Error(codes.NotFound, "no such order: é")
		}
		md, _ := metadata.FromIncomingContext(ctx)
		_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "yes"))
		return wrapperspb.String(in.GetValue() + " " + strings.Join(md.Get("x-request-id"), ",") + " " + strings.Join(md.Get("traceparent"), ",")), nil
	}}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Count", ServerStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			var in wrapperspb.StringValue
			if err := s.RecvMsg(&in); err != nil {
				return err
			}
			for i := range 3 {
				if err := s.SendMsg(wrapperspb.String(fmt.Sprint(i))); err != nil {
					return err
				}
			}
			if in.GetValue() == "hang" {
				<-s.Context().Done()
				fmt.Println("the stream was given up")
				return s.Context().Err()
			}
			return status.Error(codes.ResourceExhausted, "enough")
		}},
		{StreamName: "Chat", ServerStreams: true, ClientStreams: true, Handler: func(_ any, s grpc.ServerStream) error {
			if err := s.SendMsg(wrapperspb.String("hello")); err != nil { // the server begins
				return err
			}
			for {
				var in wrapperspb.StringValue
				if err := s.RecvMsg(&in); errors.Is(err, io.EOF) {
					return nil
				} else if err != nil {
					return err
				}
				switch in.GetValue() {
				case "exit":
					os.Exit(3)
				case "enough":
					return status.Error(codes.ResourceExhausted, "enough of it")
				}
				if err := s.SendMsg(wrapperspb.String("you said " + in.GetValue())); err != nil {
					return err
				}
			}
		}},
	},
}

// serveGRPC is this test binary as a gRPC server.
func serveGRPC() {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s := grpc.NewServer()
	s.RegisterService(&talk, struct{}{})
	fmt.Println(s.Serve(l))
}

func h2c(f *pb.Function) { f.GetServer().Protocol = pb.ServerProtocol_SERVER_PROTOCOL_H2C }

// talker is a client of talk.
type talker struct {
	t    testing.TB
	conn *grpc.ClientConn
}

func newTalker(t testing.TB, i *pb.Instance) *talker {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+whereOf(i.GetAddress(), i.GetPort()), grpc.WithContextDialer(dialTo), grpc.WithAuthority("instance"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &talker{t, conn}
}

func (c *talker) say(ctx context.Context, what string, trailer *metadata.MD) (string, error) {
	var out wrapperspb.StringValue
	err := c.conn.Invoke(ctx, "/test.Talk/Say", wrapperspb.String(what), &out, grpc.Trailer(trailer))
	return out.GetValue(), err
}

func (c *talker) stream(ctx context.Context, n int) grpc.ClientStream {
	c.t.Helper()
	s, err := c.conn.NewStream(ctx, &talk.Streams[n], "/test.Talk/"+talk.Streams[n].StreamName)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

func (c *talker) hear(s grpc.ClientStream, want string) {
	c.t.Helper()
	var out wrapperspb.StringValue
	if err := s.RecvMsg(&out); err != nil || out.GetValue() != want {
		c.t.Fatalf("%q, %v; want %q", out.GetValue(), err, want)
	}
}

// end reads the end of a stream.
func end(s grpc.ClientStream) *status.Status {
	err := s.RecvMsg(&wrapperspb.StringValue{})
	if errors.Is(err, io.EOF) {
		return status.New(codes.OK, "")
	}
	return status.Convert(err)
}

// TestGRPC: calls, streams in both directions, trailers and errors, all on one
// connection.
func TestGRPC(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(self(t, "talk", "grpc", h2c))
	i := r.ready("talk", 1)[0]
	c := newTalker(t, i)
	var trailer metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "rid-1", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	got, err := c.say(ctx, "hi", &trailer)
	if err != nil || !strings.HasPrefix(got, "hi rid-1 00-0af7651916cd43dd8448eb211c80319c-") || strings.Contains(got, "b7ad6b7169203331") || strings.Join(trailer.Get("x-trailer"), "") != "yes" {
		t.Errorf("%q, %v, trailer %v", got, err, trailer)
	}
	if _, err := c.say(t.Context(), "fail", &trailer); status.Code(err) != codes.NotFound || status.Convert(err).Message() != "no such order: é" {
		t.Errorf("%v", err)
	}
	if got, err := c.say(t.Context(), strings.Repeat("x", 3<<20), &trailer); err != nil || len(got) < 3<<20 {
		t.Errorf("3 MiB: %d, %v", len(got), err)
	}

	s := c.stream(t.Context(), 0)
	if err := errors.Join(s.SendMsg(wrapperspb.String("")), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		c.hear(s, fmt.Sprint(i))
	}
	if e := end(s); e.Code() != codes.ResourceExhausted || e.Message() != "enough" {
		t.Errorf("%v", e)
	}

	chat := c.stream(t.Context(), 1)
	c.hear(chat, "hello")
	for _, w := range []string{"a", "b"} {
		if err := chat.SendMsg(wrapperspb.String(w)); err != nil {
			t.Fatal(err)
		}
		c.hear(chat, "you said "+w)
		if _, err := c.say(t.Context(), "meanwhile", &trailer); err != nil { // beside the stream
			t.Error(err)
		}
	}
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if e := end(chat); e.Code() != codes.OK {
		t.Errorf("%v", e)
	}

	// A server may end a stream while the caller has more to say.
	chat = c.stream(t.Context(), 1)
	c.hear(chat, "hello")
	if err := chat.SendMsg(wrapperspb.String("enough")); err != nil {
		t.Fatal(err)
	}
	if e := end(chat); e.Code() != codes.ResourceExhausted || e.Message() != "enough of it" {
		t.Errorf("%v", e)
	}

	// A caller that gives up is heard of.
	giving, cancel := context.WithCancel(t.Context())
	s = c.stream(giving, 0)
	if err := errors.Join(s.SendMsg(wrapperspb.String("hang")), s.CloseSend()); err != nil {
		t.Fatal(err)
	}
	c.hear(s, "0")
	cancel()
	r.logs.await(t, "of the stream's end", func(m map[string]any) bool { return m["msg"] == "the stream was given up" })
	if after := r.ready("talk", 1)[0]; after.GetId() != i.GetId() {
		t.Error("the instance was replaced")
	}
	// Old proxies may speak HTTP/1.1 to it until they have the new cluster.
	if a := mustSend(t, i, "POST", "/test.Talk/Say", "", "content-type", "application/grpc"); a.status != http.StatusOK && a.status != http.StatusUnsupportedMediaType {
		t.Errorf("by HTTP/1.1: %d %s", a.status, a.body)
	}
}

// TestGRPCFaults: each failure has a status of gRPC.
func TestGRPCFaults(t *testing.T) {
	t.Parallel()
	r := startRunner(t, silence(300*time.Millisecond))
	short := timeout(300 * time.Millisecond)
	r.want(self(t, "exit", "grpc", h2c), self(t, "exit-stream", "grpc", h2c), self(t, "hang", "grpc", h2c, short), self(t, "hang-stream", "grpc", h2c, short))
	for _, c := range []struct {
		function string
		code     codes.Code
		message  string
		replaced bool
	}{
		{"exit", codes.Unavailable, "the instance ended while it handled the request", true},
		{"hang", codes.DeadlineExceeded, "within its timeout of 300ms", true},
		{"exit-stream", codes.Internal, "", true},
		{"hang-stream", codes.Internal, "", false},
	} {
		t.Run(c.function, func(t *testing.T) {
			i := r.readyOne(c.function)
			client := newTalker(t, i)
			var e *status.Status
			switch c.function {
			case "exit-stream":
				s := client.stream(t.Context(), 1)
				client.hear(s, "hello")
				if err := s.SendMsg(wrapperspb.String("exit")); err != nil {
					t.Fatal(err)
				}
				e = end(s)
			case "hang-stream":
				s := client.stream(t.Context(), 0)
				if err := errors.Join(s.SendMsg(wrapperspb.String("hang")), s.CloseSend()); err != nil {
					t.Fatal(err)
				}
				client.hear(s, "0")
				for e = end(s); e.Code() == codes.OK; e = end(s) { // the other pieces
				}
			default:
				_, err := client.say(t.Context(), c.function, &metadata.MD{})
				e = status.Convert(err)
			}
			if e.Code() != c.code || !strings.Contains(e.Message(), c.message) {
				t.Errorf("%v", e)
			}
			client.conn.Close()
			if c.replaced {
				i = r.replacedBy(t, c.function, i)
			}
			if got, err := newTalker(t, i).say(t.Context(), "after", &metadata.MD{}); err != nil || !strings.HasPrefix(got, "after") {
				t.Errorf("afterwards: %q, %v", got, err)
			}
		})
	}
}

// TestGRPCCold: calls that start their function, a stream in both directions among
// them; and one for a function that cannot start.
func TestGRPCCold(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	scaled := func(f *pb.Function) { f.Instances, f.Scale = 0, &pb.Scale{Max: 1} }
	r.want(self(t, "talk", "grpc", h2c, scaled), self(t, "quit", "quit", h2c, scaled))
	c := newTalker(t, &pb.Instance{Address: r.activator("talk")})
	chat := c.stream(t.Context(), 1)
	c.hear(chat, "hello")
	if err := chat.SendMsg(wrapperspb.String("a")); err != nil {
		t.Fatal(err)
	}
	c.hear(chat, "you said a")
	if got, err := c.say(t.Context(), "warm", &metadata.MD{}); err != nil || !strings.HasPrefix(got, "warm") {
		t.Errorf("%q, %v", got, err)
	}
	if err := chat.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if e := end(chat); e.Code() != codes.OK {
		t.Errorf("%v", e)
	}

	_, err := newTalker(t, &pb.Instance{Address: r.activator("quit")}).say(t.Context(), "hi", &metadata.MD{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "quit") {
		t.Errorf("%v", err)
	}
}
