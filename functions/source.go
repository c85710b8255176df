package functions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
)

// source returns the folder of a function's code and what gives it back.
func (m *manager) source(ctx context.Context, f *pb.Function) (dir string, release func(), err error) {
	source := f.GetSource()
	if err := ownSource(projectOf(f.GetName()), source); err != nil {
		return "", nil, err
	}
	switch {
	case strings.HasPrefix(source, archive.DigestPrefix):
		return m.fetched(ctx, source)
	case strings.HasSuffix(source, ".zip"):
		if info, err := m.root.Stat(filepath.FromSlash(source)); err == nil && info.Mode().IsRegular() {
			return m.zipped(ctx, source)
		}
	}
	dir, err = sourceDir(m.root, source)
	return dir, nil, err
}

// defaultProject is that of a machine with one owner.
const defaultProject = "default"

// ownSource tells why a source is not a project's own: whoever may deploy in one project
// must not read what another one has in the root. Packages that are uploaded are of
// nobody's folder.
func ownSource(project, source string) error {
	if project == defaultProject || strings.HasPrefix(source, archive.DigestPrefix) {
		return nil
	}
	if first, _, _ := strings.Cut(path.Clean(filepath.ToSlash(source)), "/"); first == project {
		return nil
	}
	return fmt.Errorf("source %q is not in the folder of project %s: functions of a project have their sources in a folder of its name below the runner's functions root, such as %q, or upload them (penstock fn deploy)", source, project, project+"/"+path.Base(path.Clean(source)))
}

// zipped unpacks a zip file below the root.
func (m *manager) zipped(ctx context.Context, source string) (dir string, release func(), err error) {
	f, err := m.root.Open(filepath.FromSlash(source))
	if err != nil {
		return "", nil, fmt.Errorf("source %q: %w", source, err)
	}
	defer f.Close()
	digest, err := archive.Digest(f)
	if err != nil {
		return "", nil, fmt.Errorf("source %q: %w", source, err)
	}
	dir, release, err = m.unpacked(ctx, digest, func(to *os.File) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		_, err := io.Copy(to, io.LimitReader(f, archive.MaxPackage+1))
		return err
	})
	if err != nil {
		err = fmt.Errorf("source %q: %w", source, err)
	}
	return dir, release, err
}

// fetched unpacks a package that was uploaded to the control plane.
func (m *manager) fetched(ctx context.Context, digest string) (dir string, release func(), err error) {
	if err := archive.CheckDigest(digest); err != nil {
		return "", nil, fmt.Errorf("source: %w", err)
	}
	dir, release, err = m.unpacked(ctx, digest, func(to *os.File) error {
		ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		stream, err := pb.NewRunnerServiceClient(m.config.Conn).FetchPackage(ctx, &pb.FetchPackageRequest{Digest: digest})
		if err != nil {
			return fmt.Errorf("fetch it from the control plane: %w", err)
		}
		for size := 0; ; {
			part, err := stream.Recv()
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case status.Code(err) == codes.NotFound:
				return errors.New("the control plane has no such package: upload it again")
			case err != nil:
				return fmt.Errorf("fetch it from the control plane: %w", err)
			}
			if size += len(part.GetChunk()); size > archive.MaxPackage {
				return fmt.Errorf("it has more than %d MiB", archive.MaxPackage>>20)
			}
			if _, err := to.Write(part.GetChunk()); err != nil {
				return err
			}
		}
	})
	if err != nil {
		err = fmt.Errorf("package %s: %w", digest, err)
	}
	return dir, release, err
}

// unpacked is the folder of a package by its digest. write writes the zip when it is
// not unpacked yet; what it writes must have the digest.
func (m *manager) unpacked(ctx context.Context, digest string, write func(*os.File) error) (dir string, release func(), err error) {
	ctx, cancel := m.builder.bound(ctx)
	defer cancel()
	store := m.builder.packages
	return store.get(ctx, strings.TrimPrefix(digest, archive.DigestPrefix), func(ctx context.Context, dir string) error {
		f, err := os.CreateTemp(filepath.Dir(dir), "package-*.zip")
		if err != nil {
			return fmt.Errorf("functions cache: %w", err)
		}
		defer func() { f.Close(); os.Remove(f.Name()) }()
		if err := write(f); err != nil {
			return err
		}
		size, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		got, err := archive.Digest(io.NewSectionReader(f, 0, size))
		if err != nil {
			return err
		}
		if got != digest {
			return fmt.Errorf("what came has the digest %s", got)
		}
		return archive.Extract(f, size, dir, archive.Default)
	})
}

// fetchTimeout bounds the transfer of one package.
const fetchTimeout = 5 * time.Minute

// sourceDir returns the absolute folder of a source. It must exist and stay in
// the root, also when symbolic links are followed.
func sourceDir(root *os.Root, source string) (string, error) {
	info, err := root.Stat(filepath.FromSlash(source))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("source %q does not exist in the runner's functions root %s", source, root.Name())
	case err != nil && strings.Contains(err.Error(), "escapes"):
		return "", fmt.Errorf("source %q leaves the runner's functions root (by .., an absolute path or a symbolic link): it must be a folder below it", source)
	case err != nil:
		return "", fmt.Errorf("source %q: %w", source, err)
	case !info.IsDir():
		return "", fmt.Errorf("source %q is a file, it must be a folder or a .zip file", source)
	}
	base, err := filepath.EvalSymlinks(root.Name())
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(base, filepath.FromSlash(source)))
	if err != nil {
		return "", err
	}
	// Checked again on the resolved path, which is what is used.
	if rel, err := filepath.Rel(base, dir); err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return "", fmt.Errorf("source %q leaves the runner's functions root", source)
	}
	return dir, nil
}
