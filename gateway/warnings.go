package gateway

// Warnings returns what is valid in an object, normalized before, but may not be meant.
// A warning stops no write; it is part of its result.
func Warnings(o Object) []Problem {
	if o == nil || !o.ProtoReflect().IsValid() {
		return nil
	}
	c := &checker{object: o}
	c.keyWarnings(o)
	return c.problems
}
