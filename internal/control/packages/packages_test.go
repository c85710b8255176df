package packages

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// front is the service through which packages come.
type front struct {
	pb.UnimplementedFunctionOperationsServiceServer
	room *Room
}

func (f front) UploadPackage(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse]) error {
	return f.room.Upload(stream)
}

// upload sends a package in parts to a room.
func upload(t *testing.T, room *Room, digest string, parts ...[]byte) (*pb.UploadPackageResponse, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterFunctionOperationsServiceServer(server, front{room: room})
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := pb.NewFunctionOperationsServiceClient(conn).UploadPackage(t.Context())
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

// zipOf is a package with one file, and its digest.
func zipOf(t *testing.T, name string) (content []byte, digest string) {
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
	digest, err = archive.Digest(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), digest
}

// TestFillNoDisk: packages that no function uses have a bound together, also while they
// are young; what is deployed makes room.
func TestFillNoDisk(t *testing.T) {
	first, firstDigest := zipOf(t, "app.py")
	second, secondDigest := zipOf(t, "other.py")
	snapshot := policies.Model().Build(nil, 0, gateway.Changes{})
	room := New(Params{
		Dir: t.TempDir(), Limit: int64(len(first) + len(second)/2),
		Snapshot: func() *gateway.Snapshot { return snapshot },
	})
	if _, err := upload(t, room, firstDigest, first); err != nil {
		t.Fatal(err)
	}
	for _, parts := range [][][]byte{{second}, {second[:10], second[10:]}} {
		if _, err := upload(t, room, secondDigest, parts...); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "deploy them first") {
			t.Errorf("a second: %v", err)
		}
	}
	if err := room.keep("nothing", secondDigest, int64(len(second))); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("one that began to come before the first was there: %v", err)
	}
	snapshot = policies.Model().Build(snapshot, 1, gateway.Changes{Updates: []gateway.Object{
		&pb.Function{Name: "projects/default/functions/f", Source: firstDigest},
	}})
	if _, err := upload(t, room, secondDigest, second); err != nil {
		t.Errorf("after the first was deployed: %v", err)
	}
	if n := room.underWay.Load(); n != 0 {
		t.Errorf("%d bytes are under way", n)
	}
}
