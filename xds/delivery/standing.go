package delivery

import (
	"cmp"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Standing is one connected proxy, and whether it serves a revision.
type Standing struct {
	ledger.ProxyStatus
	// Serves: the proxy serves the revision that was asked for. If not, Lacks says
	// why.
	Serves bool
	Lacks  []ledger.Problem
}

// Standings is every connected proxy, and those that are about to come back, by name, with how it stands to a revision.
// It is what Wait and Proxies go by, for somebody who tells others of it.
func (s *Server) Standings(revision int64) []Standing {
	now := time.Now()
	var out []Standing
	for _, v := range s.all() {
		v.mu.Lock()
		for st := range v.streams {
			p := Standing{ProxyStatus: st.status(now)}
			p.Serves, p.Lacks = st.proxy.Serves(revision, now)
			for i := range p.Lacks {
				p.Lacks[i].Proxy = st.id.Proxy
			}
			out = append(out, p)
		}
		for _, r := range v.away(now) {
			p := Standing{ProxyStatus: r.ProxyStatus, Serves: r.serves(revision)}
			if !p.Serves {
				p.Lacks = []ledger.Problem{r.problem()}
			}
			out = append(out, p)
		}
		v.mu.Unlock()
	}
	slices.SortFunc(out, func(a, b Standing) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Identity, b.Identity))
	})
	return out
}

// Follow returns a channel of signals that the state of a proxy may have changed,
// or that one came or went; several changes may make one signal. stop ends it.
func (s *Server) Follow() (signals <-chan struct{}, stop func()) {
	out, end := make(chan struct{}, 1), make(chan struct{})
	s.waiters.Add(1)
	go func() {
		for {
			changed := *s.changed.Load()
			select {
			case out <- struct{}{}:
			default:
			}
			select {
			case <-changed:
			case <-end:
				return
			}
		}
	}()
	return out, func() { s.waiters.Add(-1); close(end) }
}
