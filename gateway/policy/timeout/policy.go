package timeout

import (
	"fmt"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Policy bounds the time of a request.
var Policy = &gateway.Policy[*pb.TimeoutPolicy]{Name: "timeout", Merge: gateway.Nearer, WarnEntry: tooShort, Explain: explain}

// tooShort warns of a route that gives up before its function does: of an explicit request
// timeout, of whatever level, that is below the timeout of a function behind it.
func tooShort(e *gateway.Entry, v gateway.Value[*pb.TimeoutPolicy]) []gateway.Problem {
	request := v.Merged.GetRequest().AsDuration()
	if request == 0 { // it follows the function, or is switched off
		return nil
	}
	var out []gateway.Problem
	for _, t := range e.Backends {
		if t.Function == nil || request >= gateway.FunctionTimeout(t.Function) {
			continue
		}
		from := e.Policies.From("timeout.request")
		out = append(out, gateway.Problem{
			Object: e.Route.GetName(), Origin: e.Route.GetMetadata().GetOrigin(), Field: fmt.Sprintf("rules[%d]", e.RuleIndex),
			Message: fmt.Sprintf("timeout.request is %v (%s of %s), but %s may take %v: callers get 504 while it still works; make timeout.request longer, leave it out so that it follows the function, or make the timeout of the function shorter",
				request, from.Path, from.Object.GetName(), t.Function.GetName(), gateway.FunctionTimeout(t.Function)),
		})
	}
	return out
}
