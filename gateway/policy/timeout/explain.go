package timeout

import (
	"fmt"
	"slices"
	"time"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// explain says which bounds hold. They mean nothing where no backend is behind a rule.
func explain(x *gateway.Explanation, v gateway.Value[*pb.TimeoutPolicy]) {
	if x.Entry.Rule.GetForward() == nil {
		x.Without("timeout")
		return
	}
	from := x.Entry.Policies.From
	x.Row("timeout.request", request(x, v.Merged), from("timeout.request"))
	x.Row("timeout.idle", orNone(Idle(v.Merged), "%s without a byte in either direction; then the stream ends"), from("timeout.idle"))
	stream := "none: what flows may last"
	if d := v.Merged.GetMaxStreamDuration().AsDuration(); d > 0 {
		stream = gateway.ShortDuration(d) + " from the first byte of the request; then it ends, whatever flows"
	}
	x.Row("timeout.max_stream_duration", stream, from("timeout.max_stream_duration"))
}

func request(x *gateway.Explanation, p *pb.TimeoutPolicy) string {
	bound, follows := Request(p, x.Entry.Backends)
	text := orNone(bound, "%s until the response begins, for each try; then 504")
	if follows != nil {
		text += fmt.Sprintf("; it follows %s, which may take %s", follows.GetName(), gateway.ShortDuration(gateway.FunctionTimeout(follows)))
	}
	for _, t := range x.Entry.Backends {
		if f := t.Function; f != nil && bound > 0 && bound < gateway.FunctionTimeout(f) {
			text += fmt.Sprintf("; shorter than the timeout of %s, %s", f.GetName(), gateway.ShortDuration(gateway.FunctionTimeout(f)))
		}
	}
	if bound > 0 {
		x.MayBeLate = append(x.MayBeLate, gateway.MayOutcome(decider(x.Entry), gateway.BackendTimeout, "the response has not begun after %s", gateway.ShortDuration(bound)))
	}
	return text
}

// decider is whoever may be late: a backend, if there is one.
func decider(e *gateway.Entry) pb.ExplainDecider {
	if slices.ContainsFunc(e.Receivers(), func(t gateway.Target) bool { return t.Backend != nil }) {
		return pb.ExplainDecider_EXPLAIN_DECIDER_BACKEND
	}
	return pb.ExplainDecider_EXPLAIN_DECIDER_FUNCTION
}

func orNone(d time.Duration, format string) string {
	if d == 0 {
		return "none: switched off"
	}
	return fmt.Sprintf(format, gateway.ShortDuration(d))
}
