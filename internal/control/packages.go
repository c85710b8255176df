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
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/functions/archive"
	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/internal/pki"
)

const (
	// packageChunk is the size of the parts of a package on its way to a runner.
	packageChunk = 256 << 10
	// Packages that no function and no version names are removed, the oldest first,
	// when all together have more than so many bytes; none before packageAge.
	// While those that are younger have more, no others are taken, since the disk is that
	// of the store.
	packagesBytes = 4 << 30
	packageAge    = 24 * time.Hour
)

// packages are uploaded codes of functions: zip files in a folder, by digest.
type packages struct {
	core *Core
	dir  string
	// limit is packagesBytes, but in tests.
	limit int64
	// underWay are the bytes of uploads that have not ended.
	underWay atomic.Int64
	// keeping and tidying: one at a time.
	keeping, tidying sync.Mutex
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
	size, err := p.receive(stream, m, tmp, digest)
	if err != nil {
		return err
	}
	if err := archive.Check(tmp, size, archive.Default); err != nil {
		return status.Errorf(codes.InvalidArgument, "the package is refused: %v", err)
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	if err := p.keep(tmp.Name(), digest, size); err != nil {
		return err
	}
	service.NoteChange(stream.Context(), "packages/"+digest, "", strings.TrimPrefix(digest, archive.DigestPrefix)[:20])
	return stream.SendAndClose(&pb.UploadPackageResponse{Digest: digest, Size: size})
}

// keep puts a package in its place, when there is room: others may have come since it
// began to come.
func (p *packages) keep(from, digest string, size int64) error {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	if p.tidy()+size > p.limit {
		return p.full()
	}
	if err := os.Rename(from, p.file(digest)); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	return nil
}

func (p *packages) full() error {
	return status.Errorf(codes.ResourceExhausted, "packages that no function uses would have more than %d MiB: deploy them first, or wait until they are %s old, when they are removed", p.limit>>20, packageAge)
}

// receive writes the bytes of an upload, of which m is the first message, and
// compares their digest.
func (p *packages) receive(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse], m *pb.UploadPackageRequest, to io.Writer, digest string) (int64, error) {
	size, hash := int64(0), sha256.New()
	defer func() { p.underWay.Add(-size) }()
	idle := p.tidy()
	for {
		n := int64(len(m.GetChunk()))
		if size += n; p.underWay.Add(n)+idle > p.limit {
			return 0, p.full()
		}
		if size > archive.MaxPackage {
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

// known reports whether a package is kept here.
func (p *packages) known(digest string) bool {
	_, err := os.Stat(p.file(digest))
	return err == nil
}

// tidy removes what is too much, and returns the bytes of the packages that no function
// uses.
func (p *packages) tidy() (idleBytes int64) {
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
		digest, kept := strings.CutSuffix(e.Name(), ".zip")
		if used[archive.DigestPrefix+digest] {
			continue
		}
		if kept { // else it is under way
			idleBytes += info.Size()
		}
		if time.Since(info.ModTime()) > packageAge {
			idle = append(idle, file{filepath.Join(p.dir, e.Name()), info})
		}
	}
	slices.SortFunc(idle, func(a, b file) int { return a.info.ModTime().Compare(b.info.ModTime()) })
	for _, f := range idle {
		if total <= p.limit {
			break
		}
		if os.Remove(f.path) == nil {
			total -= f.info.Size()
			if filepath.Ext(f.path) == ".zip" {
				idleBytes -= f.info.Size()
			}
		}
	}
	return idleBytes
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
