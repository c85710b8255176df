package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
	"github.com/penstock-gateway/penstock/internal/backup"
	"github.com/penstock-gateway/penstock/internal/control/change"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/store"
)

// backupChunk is the size of the parts of an entry on its way.
const backupChunk = 256 << 10

// backups is the BackupService.
type backups struct {
	pb.UnimplementedBackupServiceServer
	core *Core
}

// Backup implements pb.BackupServiceServer.
func (b backups) Backup(r *pb.BackupRequest, stream grpc.ServerStreamingServer[pb.BackupResponse]) error {
	c := b.core
	if names := c.Snapshot().DamagedNames(); len(names) > 0 {
		return status.Errorf(codes.DataLoss, "%s, so that a backup would not be whole: write or delete what is damaged first", change.Damaged(names))
	}
	from := backup.Source{Store: c.store, PackagesDir: c.packages.Dir, Version: c.version, History: r.GetHistory()}
	err := from.Take(stream.Context(), func(name string, size int64, data io.Reader) error {
		return SendEntry(name, size, data, func(e *pb.BackupEntry) error { return stream.Send(&pb.BackupResponse{Entry: e}) })
	})
	if _, damaged := errors.AsType[*store.CorruptError](err); damaged {
		return status.Error(codes.DataLoss, err.Error())
	}
	if err != nil && status.Code(err) == codes.Unknown {
		return service.StoreError(err)
	}
	return err
}

// SendEntry sends an entry of a backup in parts.
func SendEntry(name string, size int64, data io.Reader, send func(*pb.BackupEntry) error) error {
	e := &pb.BackupEntry{Name: name, Size: size}
	buf := make([]byte, min(size, backupChunk))
	for {
		n, err := io.ReadFull(data, buf)
		e.Data = buf[:n]
		if n > 0 || e.GetName() != "" {
			if err := send(e); err != nil {
				return err
			}
		}
		if size -= int64(n); size <= 0 || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
		e = &pb.BackupEntry{}
	}
	if size != 0 {
		return fmt.Errorf("%s: %d bytes of it are missing", name, size)
	}
	return nil
}

// ReceiveEntries passes the entries that come in parts to add.
func ReceiveEntries(receive func() (*pb.BackupEntry, error), add backup.Emit) error {
	for {
		e, err := receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if e.GetName() == "" {
			return status.Errorf(codes.InvalidArgument, "entry.name: the first part of an entry must have one")
		}
		r := &entryReader{receive: receive, rest: e.GetData(), left: e.GetSize()}
		if err := add(e.GetName(), e.GetSize(), r); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
	}
}

// entryReader is the content of one entry.
type entryReader struct {
	receive func() (*pb.BackupEntry, error)
	rest    []byte
	left    int64
}

// Read implements io.Reader.
func (r *entryReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, io.EOF
	}
	for len(r.rest) == 0 {
		e, err := r.receive()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		if e.GetName() != "" {
			return 0, status.Errorf(codes.InvalidArgument, "entry %s begins before the one before it has ended", e.GetName())
		}
		r.rest = e.GetData()
	}
	n := copy(p, r.rest[:min(int64(len(r.rest)), r.left)])
	r.rest, r.left = r.rest[n:], r.left-int64(n)
	return n, nil
}

// Restore implements pb.BackupServiceServer.
func (b backups) Restore(stream grpc.ClientStreamingServer[pb.RestoreRequest, pb.RestoreResponse]) error {
	var options *pb.WriteOptions
	receive := func() (*pb.BackupEntry, error) {
		r, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if r.GetOptions() != nil {
			options = r.GetOptions()
		}
		return r.GetEntry(), nil
	}
	out, err := b.core.restore(stream.Context(), receive, func() *pb.WriteOptions { return options })
	if err != nil {
		return err
	}
	return stream.SendAndClose(&pb.RestoreResponse{Result: out.Result, Changes: out.Changes})
}

// restore makes a backup the new revision.
func (c *Core) restore(ctx context.Context, receive func() (*pb.BackupEntry, error), options func() *pb.WriteOptions) (*api.Outcome, error) {
	tmp := ""
	collect := backup.Collector{OnPackage: func(digest string, size int64, data io.Reader) error {
		if c.packages.Dir == "" || c.packages.Has(archive.DigestPrefix+digest) {
			return nil
		}
		if tmp == "" {
			if err := os.MkdirAll(c.packages.Dir, 0o700); err != nil {
				return err
			}
			var err error
			if tmp, err = os.MkdirTemp(c.packages.Dir, "restore-*"); err != nil {
				return err
			}
		}
		return backup.SavePackage(tmp, digest, data)
	}}
	defer func() {
		if tmp != "" {
			os.RemoveAll(tmp)
		}
	}()
	refused := func(err error) error {
		if status.Code(err) != codes.Unknown {
			return err
		}
		return status.Errorf(codes.InvalidArgument, "the backup is refused, and nothing was changed: %v", err)
	}
	if err := ReceiveEntries(receive, collect.Add); err != nil {
		return nil, refused(err)
	}
	contents, err := collect.Finish()
	if err != nil {
		return nil, refused(err)
	}
	target, err := c.backedUp(contents)
	if err != nil {
		return nil, refused(err)
	}
	if err := c.packages.Take(tmp, contents.Packages); err != nil {
		return nil, refused(err)
	}
	if err := checkOptions(options()); err != nil {
		return nil, err
	}
	m := contents.Manifest
	return c.become(ctx, target, options(), api.CallerName(ctx), fmt.Sprintf("restore of a backup of revision %d, taken %s", m.Revision, m.Taken.Format(time.RFC3339)))
}

// backedUp is the snapshot that a backup holds.
func (c *Core) backedUp(contents *backup.Contents) (*gateway.Snapshot, error) {
	if len(contents.Revisions) == 0 {
		return policies.Model().Build(nil, 0, gateway.Changes{}), nil
	}
	changes, err := c.store.DecodeExported(contents.Revisions[len(contents.Revisions)-1], contents.Objects)
	if err != nil {
		return nil, err
	}
	ch, err := toChanges(changes, nil)
	return policies.Model().Build(nil, contents.Manifest.Revision, ch), err
}
