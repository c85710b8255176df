package compile

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/xds"
)

// warmPath is the path of the route that names clusters without leading to them.
// The path of a call has no space (gRPC over HTTP/2: it is a URI).
const warmPath = "/penstock warm"

// WarmRoutes is a RouteConfiguration that a gRPC client holds, with a last route
// that no call takes and that names the clusters of the next one: it makes the
// client ready for them.
func WarmRoutes(held, next *xds.Resource) (*anypb.Any, error) {
	rc := &routev3.RouteConfiguration{}
	if err := held.Body.UnmarshalTo(rc); err != nil {
		return nil, fmt.Errorf("route configuration %s: %w", held.Name, err)
	}
	if len(rc.GetVirtualHosts()) != 1 {
		return nil, fmt.Errorf("route configuration %s has %d virtual hosts, not one", held.Name, len(rc.GetVirtualHosts()))
	}
	var refs []xds.Ref
	for _, ref := range next.Refs {
		if ref.Type == xds.Cluster {
			refs = append(refs, ref)
		}
	}
	if r := namingRoute(refs); r != nil {
		rc.VirtualHosts[0].Routes = append(rc.VirtualHosts[0].Routes, r)
	}
	out := &anypb.Any{}
	err := anypb.MarshalFrom(out, rc, proto.MarshalOptions{Deterministic: true})
	return out, err
}

// namingRoute names clusters and is never taken; nil for none.
func namingRoute(clusters []xds.Ref) *routev3.Route {
	if len(clusters) == 0 {
		return nil
	}
	w := &routev3.WeightedCluster{}
	for _, ref := range clusters {
		w.Clusters = append(w.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: ref.Name, Weight: wrapperspb.UInt32(1)})
	}
	return &routev3.Route{
		Name:   "penstock/warm",
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: warmPath}},
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_WeightedClusters{WeightedClusters: w}}},
	}
}
