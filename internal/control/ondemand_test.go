package control

import (
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestOnDemandIsSaid: explain and diff tell which hosts proxies load on demand.
func TestOnDemandIsSaid(t *testing.T) {
	p := start(t, t.TempDir())
	p.core.compiling.Lock()
	p.core.settings.EagerHosts = -1
	clear(p.core.views) // made with other settings
	p.core.compiling.Unlock()
	p.core.addView("default/-")
	host := func(id, name string) *pb.Route {
		r := direct(id, "/", "hello")
		r.Hostnames = []string{name}
		return r
	}
	c := pb.NewConfigServiceClient(p.conn)
	gw := &pb.Gateway{Name: "projects/default/gateways/g", Listeners: []*pb.Listener{{Name: "http", Port: 8080}}}
	if _, err := c.Apply(t.Context(), &pb.ApplyRequest{Resources: []*pb.Resource{
		{Kind: &pb.Resource_Gateway{Gateway: gw}}, resource(host("a", "a.test")),
	}}); err != nil {
		t.Fatal(err)
	}
	e, err := pb.NewExplainServiceClient(p.conn).Explain(t.Context(), &pb.ExplainRequest{Url: "http://a.test:8080/", Method: "GET"})
	if err != nil || e.GetListener().GetLayout() != "scopes, on demand" {
		t.Errorf("explain: %v %v", e, err)
	}
	d, err := c.Diff(t.Context(), &pb.DiffRequest{Apply: &pb.ApplyRequest{Resources: []*pb.Resource{resource(host("b", "b.test"))}}})
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	for _, ch := range d.GetProxyChanges() {
		if ch.GetDrains() {
			t.Errorf("%s drains", ch.GetResource())
		}
		said[ch.GetType()] = ch.GetOnDemand()
	}
	if on, there := said["ScopedRouteConfiguration"]; !on || !there || said["RouteConfiguration"] {
		t.Errorf("diff: %v", d.GetProxyChanges())
	}
}
