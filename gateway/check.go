package gateway

import (
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Check collects what is wrong with one policy of one object, or what may not be meant.
// Fields are paths within the policy; "" is the policy itself.
type Check struct {
	c        *checker
	path     string
	policies *pb.Policies
}

// Object is the object that carries the policy.
func (c *Check) Object() Object { return c.c.object }

// Policies are those of the same level, the policy itself among them.
func (c *Check) Policies() *pb.Policies { return c.policies }

func (c *Check) at(field string) string {
	if field == "" {
		return c.path
	}
	return c.path + "." + field
}

// Resolve is the full name of the object that a text in the policy means.
func (c *Check) Resolve(kind, text string) string {
	return Resolve(projectOf(c.c.object.GetName()), kind, text)
}

// Add notes a problem: what is wrong, and how to mend it.
func (c *Check) Add(field, format string, args ...any) { c.c.add(c.at(field), format, args...) }

// Has reports whether a field has a problem already; a second one about the same would not
// help.
func (c *Check) Has(field string) bool { return c.c.has(c.at(field)) }

// Duplicates reports each text that is in a list twice. field makes the field of a position.
func (c *Check) Duplicates(what string, texts []string, field func(i int) string) {
	c.c.duplicates(what, texts, func(i int) string { return c.at(field(i)) })
}

// KeySet checks a JSON Web Key Set: public keys only, and one at least that tokens can be
// checked with.
func (c *Check) KeySet(field, text string) { c.c.jwks(c.at(field), text) }

// IgnoredKeys notes the keys of a JSON Web Key Set that are ignored.
func (c *Check) IgnoredKeys(field, text string) {
	for _, i := range readKeySet(text).ignored {
		c.Add(field, "%s", i)
	}
}

// Elements makes a function for Duplicates from a pattern such as "limits[%d].name".
func Elements(pattern string) func(int) string { return elements(pattern) }

// NamesOf collects one text of each element of a list.
func NamesOf[T any](list []T, text func(T) string) []string { return namesOf(list, text) }
