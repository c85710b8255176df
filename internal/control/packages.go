package control

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/functions/archive"
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
)

const (
	// packageChunk is the size of the parts of a package on its way to a runner.
	packageChunk = 256 << 10
	// Packages that no function and no version names are removed, the oldest first,
	// when all together have more than so many bytes; none before packageAge.
	packagesBytes = 4 << 30
	packageAge    = 24 * time.Hour
)

// packages are uploaded codes of functions: zip files in a folder, by digest.
type packages struct {
	core *Core
	dir  string
	// tidying: one at a time.
	tidying sync.Mutex
}

func (p *packages) file(digest string) string {
	return filepath.Join(p.dir, strings.TrimPrefix(digest, archive.DigestPrefix)+".zip")
}

// upload keeps one package.
func (p *packages) upload(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse]) error {
	if p.dir == "" {
		return status.Error(codes.Unimplemented, "this control plane keeps no packages: it was started without a folder for them")
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	digest := m.GetDigest()
	if err := archive.CheckDigest(digest); err != nil {
		return status.Errorf(codes.InvalidArgument, "digest: %v", err)
	}
	if info, err := os.Stat(p.file(digest)); err == nil {
		now := time.Now()
		_ = os.Chtimes(p.file(digest), now, now)
		return stream.SendAndClose(&pb.UploadPackageResponse{Digest: digest, Size: info.Size(), Known: true})
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	tmp, err := os.CreateTemp(p.dir, "upload-*")
	if err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	defer func() { tmp.Close(); os.Remove(tmp.Name()) }()
	size, err := receive(stream, m, tmp, digest)
	if err != nil {
		return err
	}
	if err := archive.Check(tmp, size, archive.Default); err != nil {
		return status.Errorf(codes.InvalidArgument, "the package is refused: %v", err)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close(), os.Rename(tmp.Name(), p.file(digest))); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	p.tidy()
	return stream.SendAndClose(&pb.UploadPackageResponse{Digest: digest, Size: size})
}

// receive writes the bytes of an upload, of which m is the first message, and
// compares their digest.
func receive(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse], m *pb.UploadPackageRequest, to io.Writer, digest string) (int64, error) {
	size, hash := int64(0), sha256.New()
	for {
		if size += int64(len(m.GetChunk())); size > archive.MaxPackage {
			return 0, status.Errorf(codes.InvalidArgument, "the package has more than %d MiB", archive.MaxPackage>>20)
		}
		hash.Write(m.GetChunk())
		if _, err := to.Write(m.GetChunk()); err != nil {
			return 0, status.Errorf(codes.Internal, "packages: %v", err)
		}
		var err error
		if m, err = stream.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return 0, err
		}
	}
	if got := archive.DigestPrefix + hex.EncodeToString(hash.Sum(nil)); got != digest {
		return 0, status.Errorf(codes.InvalidArgument, "digest: says %s, but what came has %s", digest, got)
	}
	return size, nil
}

// known tells whether a package is kept here.
func (p *packages) known(digest string) bool {
	_, err := os.Stat(p.file(digest))
	return err == nil
}

// tidy removes what is too much.
func (p *packages) tidy() {
	p.tidying.Lock()
	defer p.tidying.Unlock()
	used := map[string]bool{}
	s := p.core.Snapshot()
	for _, o := range s.List(gateway.KindFunctions, "") {
		used[o.(*pb.Function).GetSource()] = true
	}
	for _, o := range s.List(gateway.KindFunctionVersions, "") {
		used[o.(*pb.FunctionVersion).GetSpec().GetSource()] = true
	}
	type file struct {
		path string
		info os.FileInfo
	}
	var idle []file
	total := int64(0)
	entries, _ := os.ReadDir(p.dir)
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		total += info.Size()
		if !used[archive.DigestPrefix+strings.TrimSuffix(e.Name(), ".zip")] && time.Since(info.ModTime()) > packageAge {
			idle = append(idle, file{filepath.Join(p.dir, e.Name()), info})
		}
	}
	slices.SortFunc(idle, func(a, b file) int { return a.info.ModTime().Compare(b.info.ModTime()) })
	for _, f := range idle {
		if total <= packagesBytes {
			return
		}
		if os.Remove(f.path) == nil {
			total -= f.info.Size()
		}
	}
}

// FetchPackage implements pb.RunnerServiceServer.
func (r *runners) FetchPackage(req *pb.FetchPackageRequest, stream grpc.ServerStreamingServer[pb.FetchPackageResponse]) error {
	if id, err := pki.PeerSPIFFE(stream.Context()); err != nil || !strings.HasPrefix(id, runnerIdentity) {
		return status.Error(codes.PermissionDenied, "only runners may have packages")
	}
	if err := archive.CheckDigest(req.GetDigest()); err != nil {
		return status.Errorf(codes.InvalidArgument, "digest: %v", err)
	}
	f, err := os.Open(r.core.packages.file(req.GetDigest()))
	if err != nil {
		return status.Errorf(codes.NotFound, "package %s is not here: upload it again (penstock fn deploy); with several replicas of the control plane, let them share --packages-dir", req.GetDigest())
	}
	defer f.Close()
	buf := make([]byte, packageChunk)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := stream.Send(&pb.FetchPackageResponse{Chunk: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.Errorf(codes.Internal, "package %s: %v", req.GetDigest(), err)
		}
	}
}

// missing are the problems of functions whose uploaded code is not here.
func (p *packages) missing(objects []gateway.Object) []gateway.Problem {
	var out []gateway.Problem
	for _, o := range objects {
		f, ok := o.(*pb.Function)
		if !ok || !strings.HasPrefix(f.GetSource(), archive.DigestPrefix) || p.known(f.GetSource()) {
			continue
		}
		out = append(out, gateway.Problem{
			Object: f.GetName(), Field: "source", Origin: f.GetMetadata().GetOrigin(),
			Message: fmt.Sprintf("package %s is not here: upload it first (penstock fn deploy does)", f.GetSource()),
		})
	}
	return out
}
