package delivery

import (
	"time"

	"github.com/penstock-gateway/penstock/xds/ledger"
)

// returning is a proxy whose stream this server ended, because of its age: it goes on
// with what it has and comes back in a moment (an Envoy, within its first back-off of
// 0.5 s). A revision that comes in that moment is no more served by it than
// by a proxy that has not answered yet, and an endpoint that goes is still used.
type returning struct {
	ledger.ProxyStatus
	until time.Time
}

// detail is why a returning proxy is pending.
const detailReturning = "is to open its next stream: the one before was ended because of its age"

// problem is that of a proxy that does not serve a revision.
func (r returning) problem() ledger.Problem {
	return ledger.Problem{Proxy: r.Name, State: ledger.Pending, Detail: detailReturning}
}

// serves reports whether the proxy served a revision before its stream ended.
func (r returning) serves(revision int64) bool { return r.Revision >= revision }

// away are the proxies that are to come back. The caller holds the view's mu.
func (v *view) away(now time.Time) []returning {
	var out []returning
	for key, r := range v.returning {
		if now.Before(r.until) {
			out = append(out, r)
		} else {
			delete(v.returning, key)
		}
	}
	return out
}

// Moved says that a proxy, by its Identity, has a stream at another server, so that
// nothing here waits for it to come back.
func (s *Server) Moved(identity string) {
	moved := false
	for _, v := range s.all() {
		v.mu.Lock()
		if _, there := v.returning[identity]; there {
			delete(v.returning, identity)
			moved = true
		}
		v.mu.Unlock()
	}
	if moved {
		s.notify()
	}
}
