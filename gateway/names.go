package gateway

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// The collections of resource names, one for each kind.
const (
	KindGateways  = "gateways"
	KindRoutes    = "routes"
	KindBackends  = "backends"
	KindFunctions = "functions"
	KindConsumers = "consumers"
	KindSecrets   = "secrets"
	// KindFunctionVersions is written by the control plane only.
	KindFunctionVersions = "functionVersions"
)

// Kinds are all collections in the order in which All lists them: what others
// refer to comes first.
var Kinds = []string{KindSecrets, KindConsumers, KindBackends, KindFunctionVersions, KindFunctions, KindGateways, KindRoutes}

var singular = map[string]string{
	KindGateways: "gateway", KindRoutes: "route", KindBackends: "backend",
	KindFunctions: "function", KindConsumers: "consumer", KindSecrets: "secret",
	KindFunctionVersions: "function version",
}

var (
	projectPattern = regexp.MustCompile(`^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$`)
	idPattern      = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)
	// versionPattern is a function's id and a number behind it.
	versionPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?\.[1-9][0-9]{0,18}$`)
)

// KindOf splits a full resource name such as "projects/p/routes/r" (AIP-122) into
// its project, its collection ("routes") and its id. The error says which part is
// wrong and what it has to look like.
func KindOf(name string) (project, kind, id string, err error) {
	project, kind, id, ok := split(name)
	switch {
	case !ok:
		return "", "", "", fmt.Errorf("%q is not a resource name: want projects/{project}/{%s}/{id}", name, strings.Join(writable(), "|"))
	case singular[kind] == "":
		return "", "", "", fmt.Errorf("%q is not a kind of resource: want one of %s", kind, strings.Join(writable(), ", "))
	case !projectPattern.MatchString(project):
		return "", "", "", fmt.Errorf("project %q must start with a letter and hold only a-z, 0-9 and -, at most 63 of them", project)
	case kind == KindFunctionVersions:
		if !versionPattern.MatchString(id) {
			return "", "", "", fmt.Errorf("id %q must be the function's id, a dot and the number of the version", id)
		}
	case !idPattern.MatchString(id):
		return "", "", "", fmt.Errorf("id %q must start and end with a-z or 0-9 and hold only a-z, 0-9, - and dots, at most 63 of them", id)
	}
	return project, kind, id, nil
}

// writable are the collections that people write to, sorted.
func writable() []string {
	return slices.DeleteFunc(slices.Sorted(slices.Values(Kinds)), func(k string) bool { return k == KindFunctionVersions })
}

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

// FromResource takes the object out of its envelope; nil when there is none.
func FromResource(r *pb.Resource) Object {
	switch k := r.GetKind().(type) {
	case *pb.Resource_Gateway:
		return orNil(k.Gateway)
	case *pb.Resource_Route:
		return orNil(k.Route)
	case *pb.Resource_Backend:
		return orNil(k.Backend)
	case *pb.Resource_Function:
		return orNil(k.Function)
	case *pb.Resource_Consumer:
		return orNil(k.Consumer)
	case *pb.Resource_Secret:
		return orNil(k.Secret)
	case *pb.Resource_FunctionVersion:
		return orNil(k.FunctionVersion)
	}
	return nil
}

// orNil avoids an interface that holds a nil pointer.
func orNil[T any, P interface {
	*T
	Object
}](p P) Object {
	if p == nil {
		return nil
	}
	return p
}

// ToResource puts an object into its envelope; nil for nil.
func ToResource(o Object) *pb.Resource {
	switch v := o.(type) {
	case *pb.Gateway:
		return &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: v}}
	case *pb.Route:
		return &pb.Resource{Kind: &pb.Resource_Route{Route: v}}
	case *pb.Backend:
		return &pb.Resource{Kind: &pb.Resource_Backend{Backend: v}}
	case *pb.Function:
		return &pb.Resource{Kind: &pb.Resource_Function{Function: v}}
	case *pb.Consumer:
		return &pb.Resource{Kind: &pb.Resource_Consumer{Consumer: v}}
	case *pb.Secret:
		return &pb.Resource{Kind: &pb.Resource_Secret{Secret: v}}
	case *pb.FunctionVersion:
		return &pb.Resource{Kind: &pb.Resource_FunctionVersion{FunctionVersion: v}}
	}
	return nil
}

// collectionOf is the collection that an object's type belongs to.
func collectionOf(o Object) string {
	switch o.(type) {
	case *pb.Gateway:
		return KindGateways
	case *pb.Route:
		return KindRoutes
	case *pb.Backend:
		return KindBackends
	case *pb.Function:
		return KindFunctions
	case *pb.Consumer:
		return KindConsumers
	case *pb.Secret:
		return KindSecrets
	case *pb.FunctionVersion:
		return KindFunctionVersions
	}
	return ""
}

// checkName reports whether an object may stand in a Snapshot under its name.
func checkName(o Object) error {
	_, kind, _, err := KindOf(o.GetName())
	if err != nil {
		return err
	}
	if want := collectionOf(o); kind != want {
		return errors.New("the name of a " + singular[want] + " is projects/{project}/" + want + "/{id}, not " + o.GetName())
	}
	return nil
}
