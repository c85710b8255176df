package xds

import (
	"testing"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestTypes: our names of the types are those of the protocol's own library.
func TestTypes(t *testing.T) {
	for want, got := range map[string]Type{
		resourcev3.ClusterType: Cluster, resourcev3.EndpointType: Endpoint, resourcev3.ListenerType: Listener,
		resourcev3.ScopedRouteType: Scope, resourcev3.RouteType: Route, resourcev3.SecretType: Secret,
		resourcev3.ExtensionConfigType: ExtensionConfig,
	} {
		if string(got) != want {
			t.Errorf("%s is %q, want %q", got.Short(), got, want)
		}
	}
	if got := Route.Short(); got != "RouteConfiguration" {
		t.Errorf("Short: %q", got)
	}
}

// TestVersions: the version is of the bytes alone; references and owners are
// sorted and unique.
func TestVersions(t *testing.T) {
	a, b := Ref{Cluster, "a"}, Ref{Cluster, "b"}
	one, err := NewResource(Route, "r", wrapperspb.String("x"), []Ref{b, a, b}, []string{"z", "y", "z"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := NewResource(Route, "r", wrapperspb.String("x"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	other, err := NewResource(Route, "r", wrapperspb.String("y"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one.Version != two.Version || one.Version == other.Version {
		t.Errorf("versions: %s, %s, %s", one.Version, two.Version, other.Version)
	}
	if len(one.Refs) != 2 || one.Refs[0] != a || len(one.Owners) != 2 || one.Owners[0] != "y" {
		t.Errorf("refs %v, owners %v", one.Refs, one.Owners)
	}
}
