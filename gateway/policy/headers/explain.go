package headers

import (
	"fmt"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func explain(x *gateway.Explanation, v gateway.Value[*pb.HeadersPolicy]) {
	for _, h := range v.Levels {
		x.Row("headers", describe(h.Value), h.Source)
	}
}

func describe(h *pb.HeadersPolicy) string {
	var parts []string
	for _, c := range []struct {
		name   string
		change *pb.HeaderChange
	}{{"request", h.GetRequest()}, {"response", h.GetResponse()}} {
		for _, s := range c.change.GetSet() {
			parts = append(parts, fmt.Sprintf("%s: set %s to %q", c.name, s.GetName(), s.GetValue()))
		}
		for _, s := range c.change.GetAdd() {
			parts = append(parts, fmt.Sprintf("%s: add %s %q", c.name, s.GetName(), s.GetValue()))
		}
		for _, n := range c.change.GetRemove() {
			parts = append(parts, fmt.Sprintf("%s: remove %s", c.name, n))
		}
	}
	if len(parts) == 0 {
		return "changes nothing"
	}
	return strings.Join(parts, "; ")
}
