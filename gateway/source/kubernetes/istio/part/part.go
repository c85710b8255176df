// Package part is what a policy's translation from Istio sees of a resource: one field, from
// which it makes one policy. The translations stand in the folders of the policies.
package part

import "slices"

// Part is a field of a resource.
type Part struct {
	// From is the path of the field in the resource, such as spec.http[0].corsPolicy, and
	// To that of the policy in the object, such as rules[0].policies.cors.
	From, To string
	// Report notes a problem at a path of the resource; hint says how to mend it.
	Report func(path, hint, format string, args ...any)
	// Link says that a path of the object was written at one of the resource.
	Link func(to, from string)
	// Written reports whether a path of the resource is written.
	Written func(path string) bool
}

// Refuse notes a problem at a field within the part; "" is the part itself.
func (p Part) Refuse(field, hint, format string, args ...any) {
	p.Report(join(p.From, field), hint, format, args...)
}

// Place says that a field of the policy was written at a field of the part.
func (p Part) Place(to, from string) { p.Link(join(p.To, to), join(p.From, from)) }

// Has reports whether a field within the part is written.
func (p Part) Has(field string) bool { return p.Written(join(p.From, field)) }

func join(path, field string) string {
	if field == "" {
		return path
	}
	return path + "." + field
}

// Unique are the texts of a list, each once, in order.
func Unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
