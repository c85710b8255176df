package gateway

import (
	"fmt"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var _ = addKind(kindSpec[*pb.Backend]{
	Singular: "backend", Rank: 30,
	Unused: "nothing uses it: no route forwards to it",
	Normalize: func(_ *Model, b *pb.Backend) {
		if d := b.GetDns(); d != nil {
			d.Hostname = hostname(d.GetHostname())
		}
		for _, e := range b.GetStatic().GetEndpoints() {
			e.Address = strings.TrimSpace(e.GetAddress())
		}
	},
	Validate: (*checker).backend,
	Unfit: func(r reference, b *pb.Backend) string {
		if r.subset != "" && !slices.ContainsFunc(b.GetSubsets(), func(x *pb.Subset) bool { return x.GetName() == r.subset }) {
			return fmt.Sprintf("%s has no subset %q; it has %s", r.name, r.subset, subsetNames(b))
		}
		return portProblem(b, r)
	},
})
