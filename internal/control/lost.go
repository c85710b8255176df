package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// silentFor is how many signs of life a runner may leave out until it is taken for
// lost. Its stream may look open for much longer: a stopped process, or a network that
// drops everything, ends no connection.
const silentFor = 4

// lost reports whether nothing is heard of a runner, and since when. What it said last
// is kept for a while, for its instances may serve on, but it is not told as their
// present state. The caller holds mu.
func (r *runners) lost(k *runner) (since time.Time, lost bool) {
	now := r.core.now()
	switch {
	case k.stream != nil:
		return k.heard, k.beat > 0 && now.Sub(k.heard) > silentFor*k.beat
	case k.elsewhere:
		return k.away, now.Sub(k.away) >= 2*heartbeat
	}
	return k.lastHeard(), true
}

// lastHeard is when the runner was last heard of here, or by whoever saved its state.
func (k *runner) lastHeard() time.Time {
	if saved := stateTime(k.saved); !saved.IsZero() && saved.Before(k.away) && k.heard.IsZero() {
		return saved
	}
	return k.away
}

// hear notes a sign of life.
func (r *runners) hear(name string, me *struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if k := r.known[name]; k != nil && k.stream == me {
		k.heard = r.core.now()
	}
}

// live are the runners that are heard of. The caller holds mu.
func (r *runners) live() []*runner {
	var out []*runner
	for _, k := range r.known {
		if _, lost := r.lost(k); !lost {
			out = append(out, k)
		}
	}
	return out
}

// gone says in words since when nothing is heard of the runners that ran a deployment;
// "" when one is heard of, or none is known to have run it.
func (r *runners) gone(deployment string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var since time.Time
	for _, k := range r.known {
		at, lost := r.lost(k)
		if !k.runs(deployment) {
			continue
		}
		if !lost {
			return ""
		}
		if at.After(since) {
			since = at
		}
	}
	if since.IsZero() {
		return ""
	}
	return fmt.Sprintf("unknown since %s: its runner is gone, or cut off from the control plane", since.UTC().Format(time.RFC3339))
}

// runs reports whether the runner has said anything of a deployment.
func (k *runner) runs(deployment string) bool {
	_, problem := k.state.GetProblems()[deployment]
	return problem ||
		slices.ContainsFunc(k.state.GetFunctions(), func(f *pb.FunctionState) bool { return f.GetFunction() == deployment }) ||
		slices.ContainsFunc(k.state.GetInstances(), func(i *pb.Instance) bool { return i.GetFunction() == deployment })
}

// instancesNow are the instances of a runner as they are known now. The caller holds mu.
func (r *runners) instancesNow(k *runner) []*pb.Instance {
	since, lost := r.lost(k)
	if !lost {
		return k.state.GetInstances()
	}
	var out []*pb.Instance
	for _, i := range k.state.GetInstances() {
		was := strings.ToLower(strings.TrimPrefix(i.GetState().String(), "INSTANCE_STATE_"))
		i = proto.CloneOf(i)
		i.State = pb.InstanceState_INSTANCE_STATE_UNKNOWN
		i.Message = fmt.Sprintf("its runner is gone, or cut off, since %s; it was %s", since.UTC().Format(time.RFC3339), was)
		out = append(out, i)
	}
	return out
}

// lostRunners are those that nothing is heard of, by name.
func (r *runners) lostRunners() []*pb.LostRunner {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*pb.LostRunner
	for name, k := range r.known {
		if since, lost := r.lost(k); lost {
			out = append(out, &pb.LostRunner{Name: name, LastHeardTime: timestamppb.New(since)})
		}
	}
	slices.SortFunc(out, func(a, b *pb.LostRunner) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out
}

const (
	// probeTimeout bounds a look at one endpoint of a runner that is gone.
	probeTimeout = 500 * time.Millisecond
	// probed is how many of them are looked at.
	probed = 4
	// probe is not a request, so that no function is called by it: whatever speaks HTTP
	// answers it with 400.
	probe = "PENSTOCK-PROBE\r\n\r\n"
)

// probeAll reports what takes connections at endpoints of a runner that is gone: its
// instances serve on when it is only cut off.
func probeAll(ctx context.Context, endpoints []compile.Endpoint) explain.Answers {
	results := make([]explain.Answers, min(len(endpoints), probed))
	var looks sync.WaitGroup
	for i := range results {
		looks.Go(func() { results[i] = probeOne(ctx, endpoints[i]) })
	}
	looks.Wait()
	best := explain.Refused
	for _, r := range results {
		best = max(best, r)
	}
	return best
}

func probeOne(ctx context.Context, e compile.Endpoint) explain.Answers {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	network, address := dialAddress(e.Address, e.Port)
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return explain.Refused
	case err != nil: // it may be there for the proxies' machines only
		return explain.NotKnown
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline) // without one, the context's end closes nothing here
	if _, err := io.WriteString(conn, probe); err != nil {
		return explain.Refused
	}
	if n, _ := conn.Read(make([]byte, 1)); n == 0 {
		return explain.Hangs
	}
	return explain.Served
}
