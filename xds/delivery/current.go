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
