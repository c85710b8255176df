package gateway

import (
	"fmt"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Gateway]{
	Singular: "gateway", Rank: 60,
	Normalize: func(m *Model, g *pb.Gateway) {
		for _, l := range g.GetListeners() {
			l.Hostnames = hostnames(l.GetHostnames())
			l.Address = strings.TrimSpace(l.GetAddress())
		}
		m.normalizePolicies(g.GetPolicies())
	},
	Validate: (*checker).gateway,
	Policies: func(g *pb.Gateway, visit func(string, Places, *pb.Policies)) {
		visit("policies", OnGateway, g.GetPolicies())
	},
	References: func(m *Model, project string, g *pb.Gateway) []reference {
		var out []reference
		for i, l := range g.GetListeners() {
			for j, c := range l.GetTls().GetCertificates() {
				out = append(out, refTo(fmt.Sprintf("listeners[%d].tls.certificates[%d]", i, j), project, c, KindSecrets))
			}
		}
		return append(out, m.policyReferences(project, "policies", g.GetPolicies())...)
	},
})
