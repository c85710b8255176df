package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// dial makes the client of an external etcd. It connects when it is first used.
func dial(o Options) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            o.Endpoints,
		TLS:                  o.TLS,
		DialTimeout:          o.RequestTimeout,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		Logger:               zapOver(o.Logger.With(slog.String("component", "etcd"))),
	})
	if err != nil {
		return nil, fmt.Errorf("store: etcd endpoints %v: %w", o.Endpoints, err)
	}
	return c, nil
}

// electionPause is how long an exchange waits for etcd to have a leader before it is repeated.
const electionPause = 200 * time.Millisecond

// again is do for an exchange that may be repeated: it outlasts the election of a leader,
// as when a member of etcd ends, which takes etcd up to 7 s to tell of. It is repeated
// for as long as the request timeout.
func again[R any](s *etcdStore, ctx context.Context, call func(context.Context) (R, error)) (R, error) {
	for begin := time.Now(); ; {
		r, err := do(s, ctx, call)
		if !interrupted(err) || time.Since(begin) > s.opts.RequestTimeout {
			return r, err
		}
		select {
		case <-time.After(electionPause):
		case <-ctx.Done():
			return r, ended(ctx)
		}
	}
}

// interrupted reports whether etcd, or the member that was asked, went away in the middle
// of an exchange. It may have happened all the same.
func interrupted(err error) bool {
	if e, ok := errors.AsType[rpctypes.EtcdError](err); ok {
		return e.Code() == codes.Unavailable
	}
	return status.Code(err) == codes.Unavailable
}

// explained adds to an error of etcd how to mend it, where that is known.
func (s *etcdStore) explained(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("store: %s is out of space: compact and defragment it, or raise its quota: %w (%w)", s.where(), err, ErrNoSpace)
	case errors.Is(err, rpctypes.ErrPermissionDenied):
		return fmt.Errorf("store: %s: %w: the user, which is the common name of the certificate of --etcd-cert, needs a role that may read and write below %s/ "+
			"(etcdctl role grant-permission ROLE --prefix=true readwrite %s/)", s.where(), err, s.opts.Prefix, s.opts.Prefix)
	case errors.Is(err, rpctypes.ErrUserEmpty), errors.Is(err, rpctypes.ErrAuthFailed):
		return fmt.Errorf("store: %s: %w: the user is the common name of the certificate of --etcd-cert; passwords are not used", s.where(), err)
	case interrupted(err):
		return fmt.Errorf("store: %s: %w (%w)", s.where(), err, ErrUncertain)
	}
	return fmt.Errorf("store: %s: %w", s.where(), err)
}

// silent is the error of an exchange that etcd did not answer in time.
func (s *etcdStore) silent(ctx context.Context) error {
	if why := s.unreachable(ctx); why != "" {
		return fmt.Errorf("store: %s cannot be reached: %s: %w", s.where(), why, context.DeadlineExceeded)
	}
	return fmt.Errorf("store: %s did not answer within %s: %w", s.where(), s.opts.RequestTimeout, context.DeadlineExceeded)
}

// unreachable says why there is no connection to any endpoint, and how to mend it where
// that is known; "" when one may be had. It tries them anew, because the client gives back
// only that the time is over.
func (s *etcdStore) unreachable(ctx context.Context) string {
	reasons := make([]string, len(s.opts.Endpoints))
	var all sync.WaitGroup
	for i, endpoint := range s.opts.Endpoints {
		all.Go(func() {
			if err := tryEndpoint(ctx, endpoint, s.opts.TLS); err != nil && !late(err) {
				reasons[i] = endpoint + ": " + err.Error() + connectionHint(err)
			}
		})
	}
	all.Wait()
	for _, r := range reasons {
		if r == "" {
			return ""
		}
	}
	return strings.Join(reasons, "; ")
}

// late reports whether an error is that of an endpoint that was silent, which says nothing
// about why.
func late(err error) bool {
	netErr, ok := errors.AsType[net.Error](err)
	return errors.Is(err, context.DeadlineExceeded) || ok && netErr.Timeout()
}

// tryTime bounds a try of an endpoint.
const tryTime = 3 * time.Second

// tryEndpoint makes a connection as the client does. That a server says nothing within
// tryTime once it is connected is not an error: etcd does not have to speak first.
func tryEndpoint(ctx context.Context, endpoint string, config *tls.Config) error {
	if strings.HasPrefix(endpoint, "unix") {
		return nil // these are for etcd inside the process
	}
	address, secure := endpoint, config != nil
	if u, err := url.Parse(endpoint); err == nil && u.Host != "" {
		address, secure = u.Host, u.Scheme == "https"
	}
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if secure {
		if config = config.Clone(); config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		if config.ServerName == "" {
			config.ServerName, _, _ = net.SplitHostPort(address) // the dial has shown that it can be split
		}
		config.NextProtos = []string{"h2"}
		secured := tls.Client(conn, config)
		if err := secured.HandshakeContext(ctx); err != nil {
			return closed(err)
		}
		conn = secured
	}
	// The preface of HTTP/2 with an empty SETTINGS frame (RFC 9113, 3.4). What a server has
	// against a client's certificate it says after the handshake, and then a write may fail
	// before that is read.
	_, writeErr := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
	_, err = io.ReadFull(conn, make([]byte, 1))
	if err != nil && late(err) {
		return writeErr
	}
	return closed(err)
}

// errEnded is what a server does that is spoken to with or without TLS when it
// expects the other.
var errEnded = errors.New("it ended the connection")

// closed puts the end of a connection into words.
func closed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return errEnded
	}
	return err
}

// connectionHint is how to mend what is wrong with a connection, in brackets, by what Go's
// TLS says of it.
func connectionHint(err error) string {
	text := err.Error()
	for _, h := range []struct{ text, hint string }{
		{"signed by unknown authority", "give the authority of etcd's own certificates: --etcd-cacert"},
		{"certificate required", "it asks for a client certificate: --etcd-cert and --etcd-key"},
		{"remote error: tls: unknown certificate authority", "it does not know the authority of the client certificate: is --etcd-cert the right one?"},
		{"remote error: tls: bad certificate", "it does not take the client certificate: is --etcd-cert the right one?"},
		{"does not look like a TLS handshake", "it does not speak TLS: write http:// in --etcd-endpoints, or better have it speak TLS"},
		{"ended the connection", "is https:// right for it in --etcd-endpoints, or http://?"},
	} {
		if strings.Contains(text, h.text) {
			return " (" + h.hint + ")"
		}
	}
	return ""
}
