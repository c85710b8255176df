package compile

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestFunctionProtocol: proxies speak HTTP/2 to servers of HTTP/2 only, and a change
// of the protocol is a change of the cluster.
func TestFunctionProtocol(t *testing.T) {
	server := func(p pb.ServerProtocol) *pb.Function {
		return &pb.Function{Name: "projects/p/functions/f", Contract: &pb.Function_Server{Server: &pb.ServerContract{Protocol: p}}}
	}
	lambda := &pb.Function{Name: "projects/p/functions/f", Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{}}}
	of := func(f *pb.Function) target { return target{Target: gateway.Target{Function: f}, cluster: f.GetName()} }
	h2c := server(pb.ServerProtocol_SERVER_PROTOCOL_H2C)
	for _, f := range []*pb.Function{lambda, server(0), server(pb.ServerProtocol_SERVER_PROTOCOL_HTTP1), h2c} {
		st, err := newCluster(of(f))
		if err != nil {
			t.Fatal(err)
		}
		var c clusterv3.Cluster
		var o httpv3.HttpProtocolOptions
		if err := st.cluster.Body.UnmarshalTo(&c); err != nil {
			t.Fatal(err)
		}
		if err := c.GetTypedExtensionProtocolOptions()[httpOptions].UnmarshalTo(&o); err != nil {
			t.Fatal(err)
		}
		if got := o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil; got != (f == h2c) {
			t.Errorf("%v: HTTP/2 is %v", f, got)
		}
		if st.madeFrom(of(h2c)) != (f == h2c) || !st.madeFrom(of(f)) {
			t.Errorf("%v: madeFrom", f)
		}
	}
}
