package headers

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy changes headers: what each level asks for is done, outermost first.
var Policy = &gateway.Policy[*pb.HeadersPolicy]{
	Name: "headers", Merge: gateway.Sum, Normalize: normalize, Check: check, Explain: explain,
}

func normalize(p *pb.HeadersPolicy) {
	for _, c := range []*pb.HeaderChange{p.GetRequest(), p.GetResponse()} {
		for _, h := range slices.Concat(c.GetSet(), c.GetAdd()) {
			h.Name = gateway.HeaderName(h.GetName())
		}
		for i, n := range c.GetRemove() {
			c.Remove[i] = gateway.HeaderName(n)
		}
	}
}

func check(c *gateway.Check, p *pb.HeadersPolicy) {
	checkChange(c, "request", p.GetRequest())
	checkChange(c, "response", p.GetResponse())
}

func checkChange(c *gateway.Check, path string, h *pb.HeaderChange) {
	checkHeaders(c, path+".set", h.GetSet())
	checkHeaders(c, path+".add", h.GetAdd())
	for i, n := range h.GetRemove() {
		checkName(c, fmt.Sprintf("%s.remove[%d]", path, i), n)
	}
	c.Duplicates("header", gateway.NamesOf(h.GetSet(), (*pb.Header).GetName), gateway.Elements(path+".set[%d].name"))
	for i, n := range h.GetRemove() {
		if slices.ContainsFunc(h.GetSet(), func(x *pb.Header) bool { return x.GetName() == n }) {
			c.Add(fmt.Sprintf("%s.remove[%d]", path, i), "%q is set by the same policy; remove one (set replaces what was there)", n)
		}
	}
}

func checkHeaders(c *gateway.Check, path string, list []*pb.Header) {
	for i, x := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		checkName(c, at+".name", x.GetName())
		if strings.ContainsFunc(x.GetValue(), func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) && !c.Has(at+".value") {
			c.Add(at+".value", "holds a control character, which no header may (RFC 9110, section 5.5)")
		}
	}
}

func checkName(c *gateway.Check, field, name string) {
	if c.Has(field) {
		return
	}
	if why := gateway.Unchangeable(name); why != "" {
		c.Add(field, "%q %s", name, why)
	}
}
