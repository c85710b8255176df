package access

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
)

// Names of the sockets in the private folder.
const (
	APISocket  = "api.sock"  // gRPC
	RESTSocket = "rest.sock" // REST, metrics, debug
)

// maxSocketPath is what fits into sockaddr_un with its final zero (unix(7)).
const maxSocketPath = 107

// Listen opens a Unix socket of the private folder, for its owner only. Where the
// path is too long for a socket, it is in a private folder of the temporary one.
func (s *Service) Listen(ctx context.Context, name string) (*net.UnixListener, error) {
	path, err := socketPath(s.dir, name)
	if err != nil {
		return nil, err
	}
	if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("the socket %s is in use: another control plane runs on this data folder", path)
	}
	// One of a process that was killed.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("replace the socket: %w", err)
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the socket %s: %w", path, err)
	}
	// Nobody else can enter the folder, so nobody came in between.
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l.(*net.UnixListener), nil
}

func socketPath(dir, name string) (string, error) {
	abs, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if len(abs) <= maxSocketPath {
		return abs, nil
	}
	h := fnv.New64a()
	h.Write([]byte(abs))
	short := filepath.Join(os.TempDir(), fmt.Sprintf("penstock-%d-%016x", os.Geteuid(), h.Sum64()))
	if err := PrivateDir(short); err != nil {
		return "", err
	}
	return filepath.Join(short, name), nil
}
