package change

import (
	"maps"
	"slices"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// ChangedFunctions are the functions whose instances a write replaces: those that it
// changed, and those that get a value of a secret that it changed.
func ChangedFunctions(out *api.Outcome) []*pb.Function {
	names := map[string]bool{}
	for _, ch := range out.Changes {
		names[ch.GetName()] = true
		if _, secret := out.Snapshot.Get(ch.GetName()).(*pb.Secret); secret {
			for _, n := range out.Snapshot.Dependents(ch.GetName()) {
				names[n] = true
			}
		}
	}
	var functions []*pb.Function
	for _, n := range slices.Sorted(maps.Keys(names)) {
		if f, ok := out.Snapshot.Get(n).(*pb.Function); ok {
			functions = append(functions, f)
		}
	}
	return functions
}

// NamedFunctions are the functions that a write names beside those that it changed.
func NamedFunctions(out *api.Outcome, w *api.Write, changed []*pb.Function) []*pb.Function {
	var functions []*pb.Function
	for _, m := range w.Mutations {
		f, ok := out.Snapshot.Get(m.Name).(*pb.Function)
		if ok && !slices.ContainsFunc(changed, func(c *pb.Function) bool { return c.GetName() == f.GetName() }) {
			functions = append(functions, f)
		}
	}
	return functions
}
