package gateway

import (
	"slices"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestKinds has every field of Resource in the table, and both orders as clients and stores
// know them: a change of one is a change of what is printed or in which order objects load.
func TestKinds(t *testing.T) {
	for f := range fieldsOf(&pb.Resource{}) {
		k := KindOfMessage(f.Message())
		if k == nil {
			t.Errorf("Resource.%s is not a kind: declare it with addKind", f.Name())
			continue
		}
		if k != KindFor(k.Collection) || k.Field != f || k.Service == nil || k.Singular == "" || KindFor(k.Owner) == nil {
			t.Errorf("%s: %+v", f.Name(), k)
		}
	}
	var order []string
	for _, k := range Kinds() {
		order = append(order, k.Collection)
	}
	for _, row := range []struct {
		what      string
		got, want []string
	}{
		{"Kinds", order, []string{"secrets", "consumers", "backends", "functionVersions", "functions", "gateways", "routes"}},
		{"Collections", Collections(), []string{"gateways", "routes", "backends", "functions", "consumers", "secrets", "functionVersions"}},
		{"Writable", Writable(), []string{"gateways", "routes", "backends", "functions", "consumers", "secrets"}},
	} {
		if !slices.Equal(row.got, row.want) {
			t.Errorf("%s are %q, not %q", row.what, row.got, row.want)
		}
	}
}

// TestAddKind refuses tables that cannot work.
func TestAddKind(t *testing.T) {
	for name, add := range map[string]func(){
		"twice":          func() { addKind(kindSpec[*pb.Route]{Singular: "route", Rank: 71}) },
		"not a resource": func() { addKind(kindSpec[notAResource]{Singular: "x", Rank: 72}) },
	} {
		t.Run(name, func(t *testing.T) {
			before := len(kindsByCollection)
			defer func() {
				if recover() == nil || len(kindsByCollection) != before {
					t.Error("a kind was added that cannot be")
				}
			}()
			add()
		})
	}
}

// notAResource has what an Object has, and is not a field of Resource.
type notAResource struct{ *pb.Role }

func (notAResource) GetMetadata() *pb.Metadata { return nil }
