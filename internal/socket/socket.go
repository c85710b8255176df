// Package socket opens the Unix sockets by which the parts of Penstock talk to each
// other on one machine. Such a socket is for its owner: it has mode 0600 and lies in a
// folder that nobody else enters, so no other user, no function in its own root and no page
// in a browser reaches it.
package socket

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Prefix begins an address that is the path of a Unix socket: "unix:/run/x.sock". It is
// also how gRPC spells one (https://grpc.github.io/grpc/core/md_doc_naming.html).
const Prefix = "unix:"

// maxPath is what fits into sockaddr_un with its final zero (unix(7)).
const maxPath = 107

// Of returns the path that an address names, and whether it names one.
func Of(address string) (path string, ok bool) { return strings.CutPrefix(address, Prefix) }

// Check returns what is wrong with the address of a socket.
func Check(address string) error {
	path, ok := Of(address)
	switch {
	case !ok:
		return fmt.Errorf("%q does not begin with %q", address, Prefix)
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q: the path of a socket must be absolute, such as %s/run/penstock/limiter.sock", address, Prefix)
	case len(path) > maxPath:
		return fmt.Errorf("%q: the path has %d bytes, a socket's may have %d: choose a shorter folder", address, len(path), maxPath)
	}
	return nil
}

// Path is where a socket of a folder is: in it, or, where that path is too long, in a
// private folder of the temporary one.
func Path(dir, name string) (string, error) {
	abs, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil || len(abs) <= maxPath {
		return abs, err
	}
	h := fnv.New64a()
	h.Write([]byte(abs))
	short := filepath.Join(os.TempDir(), fmt.Sprintf("penstock-%d-%016x", os.Geteuid(), h.Sum64()))
	return filepath.Join(short, name), privateDir(short)
}

// Listen opens the socket at a path. Its folder is made when it is absent; one that
// belongs to another user or that others may enter is refused. A socket that a
// killed process left is replaced, one that is in use is not.
func Listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if c, err := new(net.Dialer).DialContext(ctx, "unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("the socket %s is in use: another process listens on it", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
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

// privateDir makes a folder that only this user may enter, or checks that it is one.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	st, known := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case known && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to another user (uid %d): choose a folder of your own for the socket", dir, st.Uid)
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s has mode %04o, so others may enter it: run chmod 0700 %s, or choose another folder for the socket", dir, info.Mode().Perm(), dir)
	}
	return nil
}
