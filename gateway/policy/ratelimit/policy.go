package ratelimit

import (
	"fmt"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy limits how many requests may come: the limits of all levels count.
var Policy = &gateway.Policy[*pb.RateLimitPolicy]{Name: "rate_limit", Merge: gateway.Sum, Check: check, Explain: explain}

// InForce are the limits in force, outermost first.
func InForce(e *gateway.Effective) []gateway.Sourced[*pb.RateLimit] {
	return limits(Policy.Of(e).Levels)
}

func limits(levels []gateway.Sourced[*pb.RateLimitPolicy]) []gateway.Sourced[*pb.RateLimit] {
	var out []gateway.Sourced[*pb.RateLimit]
	for _, level := range levels {
		for _, l := range level.Value.GetLimits() {
			out = append(out, gateway.Sourced[*pb.RateLimit]{Source: level.Source, Value: l})
		}
	}
	return out
}

func check(c *gateway.Check, p *pb.RateLimitPolicy) {
	for i, l := range p.GetLimits() {
		if l.GetBurst() != 0 && l.GetAlgorithm() == pb.RateLimitAlgorithm_RATE_LIMIT_ALGORITHM_FIXED_WINDOW {
			c.Add(fmt.Sprintf("limits[%d].burst", i), "is for GCRA only; a fixed window lets all its requests come at once")
		}
	}
	c.Duplicates("limit", gateway.NamesOf(p.GetLimits(), (*pb.RateLimit).GetName), gateway.Elements("limits[%d].name"))
}
