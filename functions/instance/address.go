package instance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path of a Unix socket (unix(7)).
const maxSocketPath = 107

// socketNameLength is how long the names of sockets in a folder may be, "/" included.
const socketNameLength = 24

// SocketDirFits reports whether sockets in a folder have paths that are short enough.
func SocketDirFits(dir string) bool { return len(dir)+socketNameLength <= maxSocketPath }

// Listen makes a listener for requests: a Unix socket in a folder that only this user
// may enter or, without a folder, a port on the loopback interface. name has at most
// 18 bytes.
func Listen(dir, name string) (net.Listener, error) {
	if dir == "" {
		return net.Listen("tcp", "127.0.0.1:0")
	}
	path := filepath.Join(dir, name+".sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// HostPort is an address as it is reported: an IP address and a port, or the path of a
// Unix socket and 0.
func HostPort(a net.Addr) (host string, port uint32) {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.IP.String(), uint32(tcp.Port)
	}
	return a.String(), 0
}
