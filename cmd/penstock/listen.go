package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"

	"github.com/penstock-gateway/penstock/internal/socket"
)

// listen opens a Unix socket (unix:PATH, for processes of this user) or a port. What is
// served there asks nobody who he is, so a port beyond loopback is refused unless
// private says that only the mesh reaches it.
func listen(ctx context.Context, address string, private bool) (net.Listener, error) {
	if path, ok := socket.Of(address); ok {
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		if err := socket.Check(socket.Prefix + path); err != nil {
			return nil, err
		}
		l, err := socket.Listen(ctx, path)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("%q is neither IP:PORT nor unix:PATH: %w", address, err)
	}
	if ip := net.ParseIP(host); !private && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s is not a loopback address, and whoever reaches it would be believed: listen on a Unix socket (unix:/PATH), "+
			"or add --private-network where only the mesh reaches it", address)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", address)
}
