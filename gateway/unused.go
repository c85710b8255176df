package gateway

import pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

// DevIssuerSecret is the key set of the development issuer, which makes it.
const DevIssuerSecret = "projects/default/secrets/dev-issuer"

// Unused are the backends, secrets and consumers that nothing refers to, of those that
// are named: what they say has no effect.
func (s *Snapshot) Unused(names []string) []Problem {
	var out []Problem
	for _, name := range names {
		o := s.Get(name)
		why := ""
		switch o.(type) {
		case *pb.Backend:
			why = "nothing uses it: no route forwards to it"
		case *pb.Secret:
			why = "nothing uses it: no listener, policy or function refers to it"
		case *pb.Consumer:
			why = "nothing uses it: no policy lists it"
		}
		if why != "" && name != DevIssuerSecret && len(s.referring(name)) == 0 {
			out = append(out, Problem{Object: name, Message: why, Origin: o.GetMetadata().GetOrigin()})
		}
	}
	return out
}
