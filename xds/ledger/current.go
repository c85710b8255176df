package ledger

import "github.com/penstock-gateway/penstock/xds"

// Current reports whether all that the proxy has of a resource, or may have, is the
// wanted version: so what only versions before it held (an endpoint, say) is not
// used by the proxy any more. A resource that it has in no version is current, too.
func (p *Proxy) Current(ref xds.Ref) bool {
	k, ok := kindOf(ref.Type)
	if !ok {
		return true
	}
	l := &p.lanes[k]
	i, known := l.col().index[ref.Name]
	switch {
	case !known:
		return true
	case l.flying.has(i) || l.maybe[i] != nil:
		return false
	}
	return l.clean.has(i) || !l.held.has(i)
}

// Answered reports whether the proxy has acknowledged or refused the wanted version of a
// resource, or does not ask for it: nothing of it is on its way or still to be sent.
// Unlike Serves it also holds of what came later within the same revision.
func (p *Proxy) Answered(ref xds.Ref) bool {
	k, ok := kindOf(ref.Type)
	if !ok {
		return true
	}
	l := &p.lanes[k]
	i, known := l.col().index[ref.Name]
	switch {
	case !known:
		return true
	case l.flying.has(i):
		return false
	}
	dirty := l.dirty(int(i>>6))&(1<<(i&63)) != 0
	return !dirty || l.refusedNow(i)
}
