package connect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
)

// Parts of the errors of a server that is spoken to with TLS, or without, where it is the
// other way round.
const (
	saysTLS = " speaks TLS: name it with https://, as in https://"
	noTLS   = " does not speak TLS, and a credential is sent without it only to a server of this machine that is named with http://, as in http://"
)

// WrongScheme is the part of an error that says so; "" when it does not.
func WrongScheme(text string) string {
	for _, part := range []string{saysTLS, noTLS} {
		before, after, ok := strings.Cut(text, part)
		if !ok {
			continue
		}
		address := before[strings.LastIndexAny(before, " \"")+1:]
		if strings.HasPrefix(after, address) {
			return address + part + address + " (--server or PENSTOCK_SERVER)"
		}
	}
	return ""
}

// probeTime bounds the question whether a server of this machine speaks TLS.
const probeTime = 2 * time.Second

// dialPlain connects to an address of this machine that was named without a scheme, unless it
// speaks TLS: its answer to what is said without would tell nothing.
func dialPlain(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil || !answersTLS(ctx, address) {
		return conn, err
	}
	return nil, errors.Join(fmt.Errorf("%s%s%[1]s", address, saysTLS), conn.Close())
}

// answersTLS reports whether a server begins a handshake. Nothing is said to it beyond that.
func answersTLS(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return false
	}
	defer conn.Close()
	seen := false
	c := tls.Client(conn, &tls.Config{
		InsecureSkipVerify: true, // the answer is not used
		VerifyConnection:   func(tls.ConnectionState) error { seen = true; return errors.New("that is all") },
	})
	err = c.HandshakeContext(ctx)
	_, alert := errors.AsType[tls.AlertError](err)
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		alert = true // it refuses, in TLS
	}
	return seen || alert
}

// secured are the credentials of TLS, with a clear error for a server that does not speak it.
type secured struct {
	credentials.TransportCredentials
	address string
}

// ClientHandshake implements credentials.TransportCredentials.
func (s secured) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := s.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if _, other := errors.AsType[tls.RecordHeaderError](err); other {
		err = fmt.Errorf("%s%s%[1]s", s.address, noTLS)
	}
	return conn, info, err
}

// Clone implements credentials.TransportCredentials.
func (s secured) Clone() credentials.TransportCredentials {
	return secured{s.TransportCredentials.Clone(), s.address}
}
