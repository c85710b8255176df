// Package headers compiles header changes to Envoy's route fields. Values are
// literal: Envoy's % commands are escaped.
package headers

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Change is the net effect of the changes of all levels on one header.
type Change struct {
	Name string
	// Drop takes away what is there.
	Drop bool
	// Values are then appended.
	Values []string
}

// Net works the changes out, in the order gateway, route, rule, and within a
// level remove, set, add: a later set or remove undoes what stands before it. Envoy has an order of its own, in which a remove could undo a
// later set, so it is only given changes that do not depend on order.
func Net(levels []*pb.HeaderChange) []Change {
	var order []string
	byName := map[string]*Change{}
	at := func(name string) *Change {
		c := byName[name]
		if c == nil {
			c = &Change{Name: name}
			byName[name] = c
			order = append(order, name)
		}
		return c
	}
	for _, l := range levels {
		for _, name := range l.GetRemove() {
			c := at(name)
			c.Drop, c.Values = true, nil
		}
		for _, h := range l.GetSet() {
			c := at(h.GetName())
			c.Drop, c.Values = true, []string{h.GetValue()}
		}
		for _, h := range l.GetAdd() {
			c := at(h.GetName())
			c.Values = append(c.Values, h.GetValue())
		}
	}
	out := make([]Change, 0, len(order))
	for _, name := range order {
		out = append(out, *byName[name])
	}
	return out
}

// Apply adds the changes of the levels, outermost first, to a route.
func Apply(r *routev3.Route, levels []gateway.Sourced[*pb.HeadersPolicy]) {
	request := make([]*pb.HeaderChange, 0, len(levels))
	response := make([]*pb.HeaderChange, 0, len(levels))
	for _, l := range levels {
		request = append(request, l.Value.GetRequest())
		response = append(response, l.Value.GetResponse())
	}
	add, remove := options(Net(request))
	r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, add...)
	r.RequestHeadersToRemove = append(r.RequestHeadersToRemove, remove...)
	add, remove = options(Net(response))
	r.ResponseHeadersToAdd = append(r.ResponseHeadersToAdd, add...)
	r.ResponseHeadersToRemove = append(r.ResponseHeadersToRemove, remove...)
}

func options(changes []Change) (add []*corev3.HeaderValueOption, remove []string) {
	for _, c := range changes {
		if c.Drop && len(c.Values) == 0 {
			remove = append(remove, c.Name)
			continue
		}
		for i, v := range c.Values {
			action := corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD
			if c.Drop && i == 0 {
				action = corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD
			}
			add = append(add, &corev3.HeaderValueOption{
				Header:         &corev3.HeaderValue{Key: c.Name, Value: Literal(v)},
				AppendAction:   action,
				KeepEmptyValue: true,
			})
		}
	}
	return add, remove
}

// Literal escapes a text so that Envoy takes it as it is.
func Literal(s string) string { return strings.ReplaceAll(s, "%", "%%") }
