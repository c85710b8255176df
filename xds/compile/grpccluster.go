package compile

import (
	"maps"
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds"
)

// newGRPCCluster makes the cluster of a backend for gRPC clients. Of load balancing
// they all know ROUND_ROBIN, which is also the one that heeds weights here; some
// know LEAST_REQUEST, so it has to be asked for.
func newGRPCCluster(t target) (*clusterState, error) {
	b := t.Backend
	p := &packer{}
	c := &clusterv3.Cluster{
		Name: t.cluster, LbPolicy: clusterv3.Cluster_ROUND_ROBIN, ConnectTimeout: durationpb.New(gateway.DefaultConnectTimeout),
		// gRPC's default is 1,024 calls at once.
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(100_000)}}},
	}
	endpoints := staticEndpoints(t.Target)
	weighted := slices.ContainsFunc(endpoints, func(e *endpointv3.LbEndpoint) bool { return e.GetLoadBalancingWeight() != nil })
	if b.GetLoadBalancing() == pb.LoadBalancing_LOAD_BALANCING_LEAST_REQUEST && !weighted {
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	}
	st := &clusterState{from: t}
	var err error
	if d := b.GetDns(); d != nil {
		// STRICT_DNS is not known to gRPC.
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
		c.LoadAssignment = assignment(t.cluster, []*endpointv3.LbEndpoint{lbEndpoint(d.GetHostname(), d.GetPort(), 0)})
		st.cluster, err = clusterResource(p, c, []string{b.GetName()})
		return st, err
	}
	eds(c)
	if st.cluster, err = clusterResource(p, c, []string{b.GetName()}); err != nil {
		return nil, err
	}
	a := localities(t.cluster, endpoints)
	if err := a.ValidateAll(); err != nil {
		return nil, err
	}
	st.endpoints, err = xds.NewResource(xds.Endpoint, t.cluster, a, nil, []string{b.GetName()})
	return st, err
}

// localities puts endpoints of one weight into one locality: gRPC wants endpoints
// in localities with an id and a weight, chooses by the weight, and within one of
// them takes the endpoints in turn.
func localities(cluster string, endpoints []*endpointv3.LbEndpoint) *endpointv3.ClusterLoadAssignment {
	byWeight := map[uint32][]*endpointv3.LbEndpoint{}
	for _, e := range endpoints {
		w := max(1, e.GetLoadBalancingWeight().GetValue())
		byWeight[w] = append(byWeight[w], e)
	}
	a := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	for _, w := range slices.Sorted(maps.Keys(byWeight)) {
		a.Endpoints = append(a.Endpoints, &endpointv3.LocalityLbEndpoints{
			Locality:            &corev3.Locality{SubZone: "weight-" + strconv.FormatUint(uint64(w), 10)},
			LbEndpoints:         byWeight[w],
			LoadBalancingWeight: wrapperspb.UInt32(w * uint32(len(byWeight[w]))),
		})
	}
	return a
}
