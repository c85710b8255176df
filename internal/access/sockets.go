package access

import (
	"context"
	"net"

	"github.com/penstock-gateway/penstock/internal/socket"
)

// Names of the sockets in the private folder.
const (
	APISocket  = "api.sock"  // gRPC
	RESTSocket = "rest.sock" // REST, metrics, debug
)

// Listen opens a Unix socket of the private folder, for its owner only. Where the
// path is too long for a socket, it is in a private folder of the temporary one.
func (s *Service) Listen(ctx context.Context, name string) (*net.UnixListener, error) {
	path, err := socket.Path(s.dir, name)
	if err != nil {
		return nil, err
	}
	return socket.Listen(ctx, path)
}
