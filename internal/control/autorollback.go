package control

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/change"
)

const (
	defaultWatch        = 10 * time.Minute
	defaultMinRequests  = 20
	autoRollbackTimeout = 30 * time.Second
)

// rollout is a new version of a function that is watched.
type rollout struct {
	version, previous int64
	until             time.Time
	// before is what the deployment had done when the version came.
	before *pb.FunctionStats
}

// watchVersion begins to watch a function that got a new version since the last
// plan. The caller holds mu.
func (r *runners) watchVersion(s *gateway.Snapshot, f *pb.Function) {
	if f.GetAutoRollback() == nil {
		delete(r.rollouts, f.GetName())
		return
	}
	if r.seen[f.GetName()] == f {
		return
	}
	r.seen[f.GetName()] = f
	versions := r.core.versions(s, f.GetName())
	if len(versions) < 2 || versions[0].GetNumber() <= r.planned {
		return
	}
	now := versions[0].GetNumber()
	was := gateway.VersionBefore(f, versions, now)
	if was == 0 {
		return // none has served that it could go back to
	}
	window := defaultWatch
	if d := f.GetAutoRollback().GetWindow(); d != nil {
		window = d.AsDuration()
	}
	r.rollouts[f.GetName()] = &rollout{version: now, previous: was, until: r.core.now().Add(window), before: r.statsOf(f.GetName())}
}

// statsOf adds up what the runners say of a deployment; nil when none says anything.
// The caller holds mu.
func (r *runners) statsOf(name string) *pb.FunctionStats {
	var out *pb.FunctionStats
	for _, k := range r.known {
		for _, st := range k.stats.GetFunctions() {
			switch {
			case st.GetFunction() != name:
			case out == nil:
				out = proto.CloneOf(st)
			default:
				a, b := float64(out.Requests), float64(st.GetRequests())
				if total := a + b; total > 0 {
					out.MeanT = (out.MeanT*a + st.GetMeanT()*b) / total
					out.MeanR = (out.MeanR*a + st.GetMeanR()*b) / total
				}
				out.Requests += st.GetRequests()
				out.Errors += st.GetErrors()
			}
		}
	}
	return out
}

// judge looks at the versions that are watched, after a runner has said what its
// functions did.
func (r *runners) judge() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, ro := range r.rollouts {
		f, ok := r.core.Snapshot().Get(name).(*pb.Function)
		if !ok || r.core.now().After(ro.until) {
			delete(r.rollouts, name)
			continue
		}
		if why := ro.verdict(f.GetAutoRollback(), r.statsOf(name)); why != "" {
			delete(r.rollouts, name)
			r.core.background(func(ctx context.Context) {
				r.core.rollBack(ctx, f, ro.previous, fmt.Sprintf("version %d: %s", ro.version, why))
			})
		}
	}
}

// verdict says in what a new version does worse than it may; "" when in nothing, or
// when too little is known.
func (ro *rollout) verdict(rule *pb.AutoRollback, now *pb.FunctionStats) string {
	requests, errs := now.GetRequests(), now.GetErrors()
	if before := ro.before; before.GetRequests() <= requests { // else the runner began anew
		requests, errs = requests-before.GetRequests(), errs-min(errs, before.GetErrors())
	}
	if requests < uint64(cmp.Or(rule.GetMinRequests(), defaultMinRequests)) {
		return ""
	}
	rate := float64(errs) / float64(requests)
	if most := rule.GetMaxErrorRate(); most > 0 && rate > most {
		return fmt.Sprintf("%.1f %% of %d requests failed; at most %.1f %% may", 100*rate, requests, 100*most)
	}
	mean, was := now.GetMeanT()+now.GetMeanR(), ro.before.GetMeanT()+ro.before.GetMeanR()
	if factor := rule.GetMaxLatencyFactor(); factor > 0 && was > 0 && mean > factor*was {
		return fmt.Sprintf("a request takes %.1f ms on average, %.1f times the %.1f ms of version %d; at most %.1f times may", 1000*mean, mean/was, 1000*was, ro.previous, factor)
	}
	return ""
}

// rollBack gives all requests of a function to an older version.
func (c *Core) rollBack(ctx context.Context, f *pb.Function, version int64, why string) {
	ctx, cancel := context.WithTimeout(api.WithCaller(ctx, api.System("penstock")), autoRollbackTimeout)
	defer cancel()
	next := proto.CloneOf(f)
	next.Traffic = []*pb.Traffic{{Version: version, Weight: 100}}
	change.Annotate(next, gateway.RolledBackAnnotation, why)
	_, err := c.Write(ctx, &api.Write{
		Mutations: []api.Mutation{{Mode: api.Update, Name: f.GetName(), Object: next, Etag: f.GetMetadata().GetEtag()}},
		Options:   &pb.WriteOptions{Message: fmt.Sprintf("automatic rollback of %s to version %d: %s", f.GetName(), version, why), Wait: pb.WaitMode_WAIT_MODE_NONE},
		Caller:    "penstock", Source: "auto-rollback",
	})
	if err != nil {
		c.log.Error("a version does worse than it may, but cannot be rolled back", "function", f.GetName(), "to", version, "reason", why, "error", err)
		return
	}
	c.log.Warn("rolled back a version that does worse than it may", "function", f.GetName(), "to", version, "reason", why)
}

// rolledBack is the condition of a function whose requests went back; nil when they
// did not.
func rolledBack(f *pb.Function) *pb.Condition {
	why := f.GetMetadata().GetAnnotations()[gateway.RolledBackAnnotation]
	if why == "" || why == gateway.RolledBackByHand || len(f.GetTraffic()) == 0 {
		return nil
	}
	return &pb.Condition{Type: "RolledBack", Reason: "AutoRollback", Message: "requests went back to version " + fmt.Sprint(f.GetTraffic()[0].GetVersion()) + ", because of " + why}
}
