package access

import (
	"context"
	"crypto/tls"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/test/bufconn"
)

// socketInfo is the user at the other end of a Unix socket.
type socketInfo struct {
	credentials.CommonAuthInfo
	uid int
}

// AuthType implements credentials.AuthInfo.
func (socketInfo) AuthType() string { return "unix" }

// innerInfo marks the connection of the REST front of this process.
type innerInfo struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (innerInfo) AuthType() string { return "inner" }

// plainInfo is a connection that proves nothing.
type plainInfo struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (plainInfo) AuthType() string { return "plain" }

// serverCredentials tell, per connection, what it proves of the caller.
type serverCredentials struct {
	tls credentials.TransportCredentials
}

// Credentials are those of the gRPC server of the configuration API, for all its
// listeners: Unix sockets, Inner, and TCP, which is TLS when config is set.
func Credentials(config *tls.Config) credentials.TransportCredentials {
	c := &serverCredentials{}
	if config != nil {
		c.tls = credentials.NewTLS(config)
	}
	return c
}

// ServerHandshake implements credentials.TransportCredentials.
func (c *serverCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	local := credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
	switch raw := conn.(type) {
	case *net.UnixConn:
		uid, err := peerUser(raw)
		if err != nil {
			return nil, nil, err
		}
		return conn, socketInfo{local, uid}, nil
	case innerConn:
		return conn, innerInfo{local}, nil
	}
	if c.tls != nil {
		return c.tls.ServerHandshake(conn)
	}
	return conn, plainInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (c *serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, net.ErrClosed // these are of a server
}

// Info implements credentials.TransportCredentials.
func (c *serverCredentials) Info() credentials.ProtocolInfo { return credentials.ProtocolInfo{} }

// Clone implements credentials.TransportCredentials.
func (c *serverCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (c *serverCredentials) OverrideServerName(string) error { return nil }

// Inner is the listener that only this process can reach.
type Inner struct{ *bufconn.Listener }

// NewInner makes one.
func NewInner() Inner { return Inner{bufconn.Listen(1 << 20)} }

// Accept implements net.Listener.
func (l Inner) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return innerConn{c}, nil
}

type innerConn struct{ net.Conn }
