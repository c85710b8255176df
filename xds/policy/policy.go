// Package policy is what a policy is for proxies: the filters that it has in the chain of
// every listener, and what it makes of a route. The compiler knows no more of it. What has
// to hold for all filters alike is derived from Filter: the chain and its order, which
// entries a route may and must have, what stands at the host, which hosts may be loaded on
// demand, what protects. So a filter that is forgotten somewhere cannot be.
package policy

import (
	"errors"
	"fmt"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/xds"
)

// Policy is the proxies' half of a policy. Functions that are nil have nothing to do.
type Policy struct {
	// Model is the other half.
	Model gateway.AnyPolicy
	// Filters are those that it has in the chain.
	Filters []Filter
	// Route sets the entries of the filters for an entry, in the order of the list of
	// policies. An error means that the entry cannot be served.
	Route func(*Route) error
	// Action sets what the policy is in the action of a route that forwards.
	Action func(*gateway.Entry, *routev3.RouteAction)
	// Apply changes an Envoy route of the entry. The policies do so from the last of the
	// list to the first, so that the first has the last word.
	Apply func(*Route, *routev3.Route)
	// GRPC says what gRPC clients without a proxy cannot do of what is in force at an
	// entry, as the end of "they cannot …"; "" when they can. nil: they can do nothing of
	// it, and an entry where the policy is in force is closed to them.
	GRPC func(*gateway.Effective) string
}

// CannotDo is what gRPC clients without a proxy cannot do of the policy; "" for nothing.
func (p *Policy) CannotDo(e *gateway.Effective) string {
	for m := range e.InForce {
		switch {
		case m != p.Model:
		case p.GRPC != nil:
			return p.GRPC(e)
		default:
			return fmt.Sprintf("obey a policy (%s)", m.PolicyName())
		}
	}
	return ""
}

// Stage is the part of the chain that a filter stands in. Within a stage filters stand in
// the order of the list of policies.
type Stage int

// The stages, in order.
const (
	// Edge is for what every request passes before anything looks at its route.
	Edge Stage = iota
	// Prepare is for what works before it is known who calls.
	Prepare
	// Authenticate is for who calls.
	Authenticate
	// Authorize is for what callers may do.
	Authorize
	// Traffic is for what is done to requests of callers who may pass.
	Traffic
	// Guard demands the proofs of the filters before it. No filter behind it may change the
	// route of a request, or protect.
	Guard
	// Limit is for how often. What the guard refuses counts for nobody.
	Limit
)

// Mode is what a filter does without an entry of the route.
type Mode int

const (
	// Always: it is on, and does what it does for every request.
	Always Mode = iota
	// Off: it does nothing until an entry of the route switches it on. It is enabled in the
	// chain all the same, since a request that finds no host at once passes those filters
	// only that are; exact hosts without an entry take it out of their requests.
	Off
	// Denies: it is on and refuses every request of a route without an entry. Each route
	// has one.
	Denies
)

// Source is where proxies have the configuration of a filter from.
type Source int

const (
	// Listener: it is a part of the listener, so that a change drains connections.
	Listener Source = iota
	// Discovered: it comes by itself, for each project; Config is in force until then.
	Discovered
	// Awaited comes by itself, too, and nothing is served until then; Config only tells
	// its type.
	Awaited
)

// Filter is an HTTP filter of the chain.
type Filter struct {
	// Name is the key of the filter's entries in routes that proxies hold. It holds a
	// version, and stays as long as the meaning of these entries does, so that a release
	// with a new filter does not send all routes again. Of filters that do not come with
	// the listener it begins with the project, see NameIn.
	Name   string
	Stage  Stage
	Mode   Mode
	Source Source
	// Config is its configuration.
	Config func(*Packer) Message
	// Needs are the resources that Config names.
	Needs []xds.Ref
	// Entry is an entry of a route, for its type; nil when it takes none.
	Entry Message
	// Off is the entry with which it lets everything pass. It is needed for all modes but
	// Always. Never envoy.config.route.v3.FilterConfig.disabled: in a route that is a bypass
	// when a request changes its route.
	Off Message
	// AtHost: entries that are equal in all routes of a host may stand at the host.
	AtHost bool
	// Forwards: entries mean nothing to routes that forward no request, so what those have
	// does not matter for AtHost.
	Forwards bool
	// Proof are the conditions under which the guard refuses a request: that the filter
	// has not left what shows that it did its work. They are policies of an RBAC filter
	// that denies, by names that are no other filter's. It is needed for Denies.
	Proof func(*Route) map[string]*rbacconfigv3.Policy
}

// NameIn is the name of the filter in the chains of a project.
func (f *Filter) NameIn(project string) string {
	if f.Source == Listener {
		return f.Name
	}
	return project + "/" + f.Name
}

// Check says why a filter of a policy cannot be in a chain.
func (f *Filter) Check() error {
	switch {
	case f.Name == "" || f.Config == nil:
		return errors.New("has no name or no configuration")
	case f.Mode != Always && (f.Entry == nil || f.Off == nil):
		return errors.New("is not always on, so it needs the type of its entries and the one that lets everything pass (Off)")
	case f.Mode != Always && f.Off.ProtoReflect().Descriptor() != f.Entry.ProtoReflect().Descriptor():
		return errors.New("has an Off of another type than its entries")
	case f.Mode == Denies && f.Proof == nil:
		return errors.New("protects and leaves no Proof, so a request that gets past it would be served")
	case f.Mode == Denies && f.Stage >= Guard:
		return errors.New("protects and is behind the guard, which demands no proof of it there")
	case f.Mode == Off && f.Proof != nil:
		return errors.New("protects, so it must deny by default (Denies), not be switched on")
	}
	return nil
}

// Message is a generated message of go-control-plane.
type Message interface {
	proto.Message
	ValidateAll() error
}

// Packer wraps messages and collects what is wrong with them: the constraints of a
// message inside an Any are not checked by the message around it, and Envoy
// refuses everything that comes in the same response.
type Packer struct{ errs []error }

// Pack wraps a message.
func (p *Packer) Pack(m Message) *anypb.Any {
	p.Check(m)
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), err))
	}
	return a
}

// Check notes what is wrong with a message that is not packed.
func (p *Packer) Check(m Message) {
	if err := m.ValidateAll(); err != nil {
		p.errs = append(p.errs, err)
	}
}

// Err is all that is wrong.
func (p *Packer) Err() error { return errors.Join(p.errs...) }
