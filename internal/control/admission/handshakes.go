package admission

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// handshakeEvery bounds the lines about one address and reason: a proxy that is
	// refused tries again about once a second.
	handshakeEvery = time.Minute
	// maxHandshakeLines bounds the lines of all addresses in that time, as anybody
	// who reaches the port can have one written.
	maxHandshakeLines = 60
)

// handshakes logs and counts the TLS handshakes that fail on the xDS port.
type handshakes struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	counts map[string]uint64 // by reason
	since  time.Time         // the beginning of the minute that said and left are of
	said   map[string]bool   // address and reason
	left   int               // lines that were one too many
}

func newHandshakes(log *slog.Logger) *handshakes {
	return &handshakes{log: log, now: time.Now, counts: map[string]uint64{}, said: map[string]bool{}}
}

// refused notes a handshake that failed.
func (h *handshakes) refused(from net.Addr, err error) {
	why := handshakeReason(err)
	host := from.String()
	if only, _, err := net.SplitHostPort(host); err == nil {
		host = only
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[why.label]++
	if now := h.now(); now.Sub(h.since) >= handshakeEvery {
		if h.left > 0 {
			h.log.Warn("audit: more TLS handshakes on the xDS port failed than are logged one by one", "not_logged", h.left)
		}
		h.since, h.left = now, 0
		clear(h.said)
	}
	key := host + " " + why.label
	if h.said[key] {
		return
	}
	if len(h.said) >= maxHandshakeLines {
		h.left++
		return
	}
	h.said[key] = true
	level := slog.LevelWarn
	if why.label == "closed" { // as load balancers do to see whether the port is open
		level = slog.LevelDebug
	}
	h.log.Log(context.Background(), level, "audit: a TLS handshake on the xDS port failed", "from", from.String(), "reason", why.label, "meaning", why.words, "error", err)
}

// snapshot is how many handshakes failed, by reason.
func (h *handshakes) snapshot() map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// reason is why a handshake failed: a label for metrics, and words for people.
type reason struct{ label, words string }

// alerts are reasons that the client gave, by the end of the text that crypto/tls has
// for its alert (RFC 8446, 6.2).
var alerts = []struct {
	text string
	reason
}{
	{"unknown certificate authority", distrusted}, {"unknown certificate", distrusted}, {"bad certificate", distrusted},
	{"certificate required", reason{"client-alert", "the client ended the handshake because of a certificate"}},
	{"expired certificate", reason{"server-expired", "to the client the certificate of this control plane has expired or is not valid yet: compare the clocks"}},
	{"protocol version not supported", reason{"protocol", "client and control plane have no version of TLS in common"}},
}

var distrusted = reason{"server-not-trusted", "the client does not trust the certificate of this control plane: " +
	"it has the certificate authority of another installation, or an earlier one of this installation, or calls this replica by a name that --xds-host does not have"}

// handshakeReason is why a handshake failed.
func handshakeReason(err error) reason {
	var (
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		network   net.Error
	)
	text := err.Error()
	switch {
	case errors.As(err, &authority):
		return reason{"client-foreign", "the client's certificate is of another certificate authority than this control plane's: let it join again"}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return reason{"client-expired", "the client's certificate has expired or is not valid yet: let it join again, and compare the clocks"}
	case errors.As(err, &verify), errors.As(err, &invalid):
		return reason{"client-invalid", "the client's certificate is not valid"}
	case strings.Contains(text, "remote error: tls: "):
		for _, a := range alerts {
			if strings.HasSuffix(text, a.text) {
				return a.reason
			}
		}
		return reason{"client-alert", "the client ended the handshake"}
	case errors.As(err, &record):
		return reason{"not-tls", "what the client sent is not TLS: it must call this port by TLS"}
	case errors.As(err, &network) && network.Timeout():
		return reason{"timeout", "the client did not complete the handshake in time"}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return reason{"closed", "the client closed the connection before the handshake was complete"}
	case strings.Contains(text, "unsupported versions"):
		return reason{"protocol", "client and control plane have no version of TLS in common"}
	}
	return reason{"other", "see the error"}
}
