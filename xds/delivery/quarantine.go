package delivery

import (
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

// Refusal is a resource that a proxy refused and that is likely to be bad for all.
type Refusal struct {
	Proxy Identity
	// Envoy is the version of the proxy.
	Envoy string
	// View is the one that the resource is in.
	View string
	ledger.Culprit
	// Detail is what the proxy said.
	Detail string
}

// Quarantine tells what is known of the refused resources of a view: the refused
// versions are sent to no proxy, and the last good ones in their place. It may be
// called before the first Update of the view.
func (s *Server) Quarantine(name string, all map[xds.Ref]*ledger.Quarantine) {
	s.change(name, func(v *view) { v.table.Quarantine(all) })
}

// Lift has resources sent again to every proxy, also to those that refused them.
func (s *Server) Lift(name string, refs ...xds.Ref) {
	s.change(name, func(v *view) {
		for _, ref := range refs {
			v.table.Lift(ref)
			for _, m := range v.memory {
				delete(m.refused, ref)
			}
		}
	})
}

// change does something to a view and has its streams look again.
func (s *Server) change(name string, do func(*view)) {
	v, ok := s.view(name)
	if !ok {
		return
	}
	v.mu.Lock()
	do(v)
	for st := range v.streams {
		st.wake.Set()
	}
	v.mu.Unlock()
	s.notify()
}

// tell tells of an outcome that others should know of.
func (st *stream) tell(out ledger.Outcome) {
	if c := out.Culprit; c != nil && st.s.opt.OnRefused != nil {
		st.v.mu.Lock()
		version := st.version
		st.v.mu.Unlock()
		st.s.opt.OnRefused(Refusal{Proxy: st.id, Envoy: version, View: st.v.name, Culprit: *c, Detail: out.Detail})
	}
	if st.s.opt.OnAccepted != nil {
		for _, ref := range out.Accepted {
			st.s.opt.OnAccepted(st.v.name, ref)
		}
	}
}
