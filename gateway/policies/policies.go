// Package policies is the list of all policies: a new one is a line here.
package policies

import (
	"sync"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/compression"
	"github.com/penstock-gateway/penstock/gateway/policy/cors"
	"github.com/penstock-gateway/penstock/gateway/policy/headers"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
	"github.com/penstock-gateway/penstock/xds/policy"
)

// Proxies returns the policies, each with both halves, in the order in which they are
// checked, explained and compiled.
func Proxies() []*policy.Policy {
	return []*policy.Policy{
		cors.Proxies,
		jwt.Proxies,
		ratelimit.Proxies,
		headers.Proxies,
		compression.Proxies,
		timeout.Proxies,
		retry.Proxies,
	}
}

// Model returns the model with all of them.
var Model = sync.OnceValue(func() *gateway.Model {
	var models []gateway.AnyPolicy
	for _, p := range Proxies() {
		models = append(models, p.Model)
	}
	return gateway.NewModel(models...)
})
