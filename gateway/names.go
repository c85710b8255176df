package gateway

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The collections of the kinds that the code names. KindFor has what is known of each.
const (
	KindGateways  = "gateways"
	KindRoutes    = "routes"
	KindBackends  = "backends"
	KindFunctions = "functions"
	KindConsumers = "consumers"
	KindSecrets   = "secrets"

	KindFunctionVersions = "functionVersions"
)

var (
	projectPattern = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	idPattern      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
)

// KindOf splits a full resource name such as "projects/p/routes/r" (AIP-122) into
// its project, its collection ("routes") and its id. The error says which part is
// wrong and what it has to look like.
func KindOf(name string) (project, kind, id string, err error) {
	project, kind, id, ok := split(name)
	k := KindFor(kind)
	switch {
	case !ok:
		return "", "", "", fmt.Errorf("%q is not a resource name: want projects/{project}/{%s}/{id}", name, strings.Join(writable(), "|"))
	case k == nil:
		return "", "", "", fmt.Errorf("%q is not a kind of resource: want one of %s", kind, strings.Join(writable(), ", "))
	case !projectPattern.MatchString(project):
		return "", "", "", fmt.Errorf("project %q must start with a letter and hold only a-z, 0-9 and -, at most 63 of them", project)
	}
	if err := k.checkID(id); err != nil {
		return "", "", "", err
	}
	return project, kind, id, nil
}

// writable are the collections that people write to, sorted.
func writable() []string { return slices.Sorted(slices.Values(Writable())) }

// split takes a full name apart without looking at the parts.
func split(name string) (project, kind, id string, ok bool) {
	rest, ok := strings.CutPrefix(name, "projects/")
	if !ok {
		return "", "", "", false
	}
	project, rest, ok = strings.Cut(rest, "/")
	if !ok {
		return "", "", "", false
	}
	kind, id, ok = strings.Cut(rest, "/")
	if !ok || strings.Contains(id, "/") {
		return "", "", "", false
	}
	return project, kind, id, true
}

// projectOf is the project of a full name; "" when it is none.
func projectOf(name string) string {
	p, _, _, _ := split(name)
	return p
}

// kindOf is the collection of a full name; "" when it is none.
func kindOf(name string) string {
	_, k, _, _ := split(name)
	return k
}

// Resolve makes the full name of a reference that stands in an object of a
// project. A reference is a full name, a collection with an id ("functions/y"), or
// a bare id, which is of the given collection. It does not tell whether the
// object exists.
func Resolve(project, kind, ref string) string {
	switch {
	case strings.HasPrefix(ref, "projects/"):
		return ref
	case strings.Contains(ref, "/"):
		return "projects/" + project + "/" + ref
	}
	return "projects/" + project + "/" + kind + "/" + ref
}

// checkName reports whether an object may stand in a Snapshot under its name.
func checkName(o Object) error {
	_, kind, _, err := KindOf(o.GetName())
	if err != nil {
		return err
	}
	k := KindOfMessage(o.ProtoReflect().Descriptor())
	if k == nil {
		return fmt.Errorf("%s is not a kind of resource", o.ProtoReflect().Descriptor().FullName())
	}
	if kind != k.Collection {
		return errors.New("the name of a " + k.Singular + " is projects/{project}/" + k.Collection + "/{id}, not " + o.GetName())
	}
	return nil
}
