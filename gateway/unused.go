package gateway

// DevIssuerSecret is the key set of the development issuer, which makes it.
const DevIssuerSecret = "projects/default/secrets/dev-issuer"

// Unused are the objects that nothing refers to, of those that are named, of kinds that
// have an effect only where something does: backends, secrets and consumers.
func (s *Snapshot) Unused(names []string) []Problem {
	var out []Problem
	for _, name := range names {
		o := s.Get(name)
		why := kindOfObject(o).whenUnused()
		if why != "" && name != DevIssuerSecret && len(s.referring(name)) == 0 {
			out = append(out, Problem{Object: name, Message: why, Origin: o.GetMetadata().GetOrigin()})
		}
	}
	return out
}
