// Package policies is the list of all policies: a new one is a line here.
package policies

import (
	"sync"

	"github.com/penstock-gateway/penstock/authn/jwt"
	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policy/headers"
	"github.com/penstock-gateway/penstock/gateway/policy/ratelimit"
	"github.com/penstock-gateway/penstock/gateway/policy/retry"
	"github.com/penstock-gateway/penstock/gateway/policy/timeout"
)

// Model returns the model with all policies, in the order in which they are explained.
var Model = sync.OnceValue(func() *gateway.Model {
	return gateway.NewModel(jwt.Policy, ratelimit.Policy, headers.Policy, timeout.Policy, retry.Policy)
})
