// Package packages keeps uploaded code of functions: zip files in a folder, by digest,
// bounded together.
//
// Locks: keeping > tidying. Both are held while files are read, renamed and removed, and
// only uploads and restores wait for them.
package packages

import (
	"cmp"
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

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
	"github.com/penstock-gateway/penstock/internal/control/service"
)

const (
	// packageChunk is the size of the parts of a package on its way to a runner.
	packageChunk = 256 << 10
	// Packages that no function and no version names are removed, the oldest first,
	// when all together have more than so many bytes; none before packageAge.
	// While those that are younger have more, no others are taken, since the disk is that
	// of the store.
	defaultLimit = 4 << 30
	packageAge   = 24 * time.Hour
)

// Params are what a Room needs.
type Params struct {
	// Dir is the folder. Empty: no packages are kept.
	Dir string
	// Limit bounds the bytes of the packages that no function uses. Default 4 GiB.
	Limit int64
	// Snapshot is the newest configuration, whose functions and versions name packages.
	Snapshot func() *gateway.Snapshot
}

// Room keeps packages.
type Room struct {
	Params
	// underWay are the bytes of uploads that have not ended.
	underWay atomic.Int64
	// keeping and tidying: one at a time.
	keeping, tidying sync.Mutex
}

// New returns a Room. Nothing is read or written before the first package comes.
func New(p Params) *Room {
	p.Limit = cmp.Or(p.Limit, defaultLimit)
	return &Room{Params: p}
}

func (p *Room) file(digest string) string {
	return filepath.Join(p.Dir, strings.TrimPrefix(digest, archive.DigestPrefix)+".zip")
}

// Upload keeps one package, once it has come whole, is what its digest says, and is a zip
// file that may be unpacked. Errors are gRPC statuses.
func (p *Room) Upload(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse]) error {
	if p.Dir == "" {
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
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	tmp, err := os.CreateTemp(p.Dir, "upload-*")
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
func (p *Room) keep(from, digest string, size int64) error {
	p.keeping.Lock()
	defer p.keeping.Unlock()
	if p.tidy()+size > p.Limit {
		return p.full()
	}
	if err := os.Rename(from, p.file(digest)); err != nil {
		return status.Errorf(codes.Internal, "packages: %v", err)
	}
	return nil
}

func (p *Room) full() error {
	return status.Errorf(codes.ResourceExhausted, "packages that no function uses would have more than %d MiB: deploy them first, or wait until they are %s old, when they are removed", p.Limit>>20, packageAge)
}

// receive writes the bytes of an upload, of which m is the first message, and
// compares their digest.
func (p *Room) receive(stream grpc.ClientStreamingServer[pb.UploadPackageRequest, pb.UploadPackageResponse], m *pb.UploadPackageRequest, to io.Writer, digest string) (int64, error) {
	size, hash := int64(0), sha256.New()
	defer func() { p.underWay.Add(-size) }()
	idle := p.tidy()
	for {
		n := int64(len(m.GetChunk()))
		if size += n; p.underWay.Add(n)+idle > p.Limit {
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

// Has reports whether a package is kept here.
func (p *Room) Has(digest string) bool {
	_, err := os.Stat(p.file(digest))
	return err == nil
}

// tidy removes what is too much, and returns the bytes of the packages that no function
// uses.
func (p *Room) tidy() (idleBytes int64) {
	p.tidying.Lock()
	defer p.tidying.Unlock()
	used := map[string]bool{}
	s := p.Snapshot()
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
	entries, _ := os.ReadDir(p.Dir)
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
			idle = append(idle, file{filepath.Join(p.Dir, e.Name()), info})
		}
	}
	slices.SortFunc(idle, func(a, b file) int { return a.info.ModTime().Compare(b.info.ModTime()) })
	for _, f := range idle {
		if total <= p.Limit {
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

// Missing are the problems of functions whose uploaded code is not here.
func (p *Room) Missing(objects []gateway.Object) []gateway.Problem {
	var out []gateway.Problem
	for _, o := range objects {
		f, ok := o.(*pb.Function)
		if !ok || !strings.HasPrefix(f.GetSource(), archive.DigestPrefix) || p.Has(f.GetSource()) {
			continue
		}
		out = append(out, gateway.Problem{
			Object: f.GetName(), Field: "source", Origin: f.GetMetadata().GetOrigin(),
			Message: fmt.Sprintf("package %s is not here: upload it first (penstock fn deploy does)", f.GetSource()),
		})
	}
	return out
}

// Take moves packages by digest, without the name of the algorithm, from a folder to where
// the others are. Those that are not in it were here already.
func (p *Room) Take(from string, digests []string) error {
	if from == "" {
		return nil
	}
	for _, d := range digests {
		file := filepath.Join(from, d+".zip")
		f, err := os.Open(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // it was here already
		}
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			err = archive.Check(f, info.Size(), archive.Default)
		}
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(file, p.file(archive.DigestPrefix+d))
		}
		if err != nil {
			return fmt.Errorf("package %s: %w", d, err)
		}
	}
	return nil
}

// Send sends the package of a digest in parts. Errors are gRPC statuses.
func (p *Room) Send(digest string, send func(*pb.FetchPackageResponse) error) error {
	if err := archive.CheckDigest(digest); err != nil {
		return status.Errorf(codes.InvalidArgument, "digest: %v", err)
	}
	f, err := os.Open(p.file(digest))
	if err != nil {
		return status.Errorf(codes.NotFound, "package %s is not here: upload it again (penstock fn deploy); with several replicas of the control plane, let them share --packages-dir", digest)
	}
	defer f.Close()
	buf := make([]byte, packageChunk)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if err := send(&pb.FetchPackageResponse{Chunk: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return status.Errorf(codes.Internal, "package %s: %v", digest, err)
		}
	}
}
