package delivery

import (
	"time"

	"github.com/penstock-gateway/penstock/xds"
)

// Current tells which of some resources every connected proxy has in the version
// of the last Update, or not at all, so that nobody uses what only versions before
// held. A proxy that has been silent for longer than patience does not count: it is
// dead, or cut off; one that is about to come back does. again is when the next one will be; zero for never.
func (s *Server) Current(refs []xds.Ref, patience time.Duration) (current []bool, again time.Time) {
	current = make([]bool, len(refs))
	for i := range current {
		current[i] = true
	}
	now := time.Now()
	for _, v := range s.all() {
		v.mu.Lock()
		for st := range v.streams {
			if at := st.proxy.SilentAt(); !at.IsZero() {
				if at = at.Add(patience); !at.After(now) {
					continue
				} else if again.IsZero() || at.Before(again) {
					again = at
				}
			}
			for i, ref := range refs {
				current[i] = current[i] && st.proxy.Current(ref)
			}
		}
		for _, r := range v.away(now) {
			clear(current) // what it has is known when it comes back
			again = earliest(again, r.until)
		}
		v.mu.Unlock()
	}
	return current, again
}

// Awaited reports whether a proxy has still to be sent, or to answer, something of a type.
// Silent proxies do not count; one that is about to come back does.
func (s *Server) Awaited(t xds.Type) bool {
	now := time.Now()
	for _, v := range s.all() {
		v.mu.Lock()
		awaited := len(v.away(now)) > 0
		for st := range v.streams {
			at := st.proxy.SilentAt()
			awaited = awaited || st.proxy.Awaits(t) && (at.IsZero() || now.Before(at))
		}
		v.mu.Unlock()
		if awaited {
			return true
		}
	}
	return false
}

// Answered tells of which resources of a view every proxy has acknowledged or refused the
// version of the last Update, so that what Standings says of them afterwards is about that
// version. Silent proxies do not count; one that is about to come back has not answered.
func (s *Server) Answered(name string, refs []xds.Ref) []bool {
	answered := make([]bool, len(refs))
	for i := range answered {
		answered[i] = true
	}
	v, ok := s.view(name)
	if !ok {
		return answered
	}
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	for st := range v.streams {
		if at := st.proxy.SilentAt(); !at.IsZero() && !now.Before(at) {
			continue
		}
		for i, ref := range refs {
			answered[i] = answered[i] && st.proxy.Answered(ref)
		}
	}
	if len(v.away(now)) > 0 {
		clear(answered)
	}
	return answered
}
