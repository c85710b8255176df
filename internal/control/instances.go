package control

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// set takes over a state, and returns the functions whose endpoints are others.
func (k *runner) set(st *pb.RunnerState) []string {
	serve, refuse := k.serve, k.refuse
	k.state = st
	k.serve, k.refuse = endpointsOf(st)
	changed := map[string]bool{}
	for _, x := range [][2]map[string][]compile.Endpoint{{serve, k.serve}, {refuse, k.refuse}} {
		for _, f := range slices.Concat(slices.Collect(maps.Keys(x[0])), slices.Collect(maps.Keys(x[1]))) {
			if !slices.Equal(x[0][f], x[1][f]) {
				changed[f] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(changed))
}

// endpointsOf are the endpoints that follow from a state: the instances that are ready,
// and after them, by priority, the activators, or these alone where all requests are
// to go to them. refuse are those that only say why a function cannot be run.
func endpointsOf(st *pb.RunnerState) (serve, refuse map[string][]compile.Endpoint) {
	out, central := map[string][]compile.Endpoint{}, map[string]bool{}
	refuse = map[string][]compile.Endpoint{}
	for _, f := range st.GetFunctions() {
		if !reachable(f.GetActivatorAddress(), f.GetActivatorPort()) {
			continue
		}
		if f.GetRefusing() {
			refuse[f.GetFunction()] = []compile.Endpoint{{Address: f.GetActivatorAddress(), Port: f.GetActivatorPort()}}
			continue
		}
		central[f.GetFunction()] = f.GetCentral()
		priority := uint32(1)
		if f.GetCentral() {
			priority = 0
		}
		out[f.GetFunction()] = []compile.Endpoint{{Address: f.GetActivatorAddress(), Port: f.GetActivatorPort(), Priority: priority}}
	}
	for _, i := range st.GetInstances() {
		if f := i.GetFunction(); i.GetState() == pb.InstanceState_INSTANCE_STATE_READY && reachable(i.GetAddress(), i.GetPort()) && !central[f] {
			out[f] = append(out[f], compile.Endpoint{Address: i.GetAddress(), Port: i.GetPort()})
		}
	}
	for _, list := range out {
		slices.SortFunc(list, compareEndpoints)
	}
	return out, refuse
}

// reachable reports whether a runner reports where requests go: to an address and a
// port, or to a Unix socket.
func reachable(address string, port uint32) bool {
	return port != 0 || filepath.IsAbs(address) && len(address) <= maxSocketPath
}

// maxSocketPath is the longest path of a Unix socket (unix(7)).
const maxSocketPath = 107

// dialAddress is where such an address is dialled.
func dialAddress(address string, port uint32) (network, to string) {
	if port == 0 {
		return "unix", address
	}
	return "tcp", net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10))
}

func compareEndpoints(a, b compile.Endpoint) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), strings.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port))
}

// endpoints are where requests of a function go: its instances, and its activators.
func (r *runners) endpoints(function string) []compile.Endpoint {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := func(k *runner) []compile.Endpoint { return k.serve[function] }
	if other := r.standIn(function); other != "" && !r.relied(function) {
		function = other
	} else if !r.serves(function) {
		of = func(k *runner) []compile.Endpoint { return k.refuse[function] }
	}
	var out []compile.Endpoint
	for _, k := range r.known {
		out = append(out, of(k)...)
	}
	slices.SortFunc(out, compareEndpoints)
	return slices.Compact(out)
}

// instances are all instances of a function, or of all functions when it is "".
func (r *runners) instances(function string) []*pb.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*pb.Instance
	for _, k := range r.known {
		for _, i := range r.instancesNow(k) {
			if function == "" || i.GetFunction() == function {
				out = append(out, i)
			}
		}
	}
	slices.SortFunc(out, func(a, b *pb.Instance) int {
		return strings.Compare(a.GetFunction()+"\x00"+a.GetId(), b.GetFunction()+"\x00"+b.GetId())
	})
	return out
}

// connected are the runners that are connected to any replica, by name.
func (r *runners) connected() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for name, k := range r.known {
		if _, lost := r.lost(k); !lost {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// problems are why deployments cannot be run, as runners say that are heard of.
func (r *runners) problems() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]string{}
	for _, k := range r.live() {
		maps.Copy(out, k.state.GetProblems())
	}
	return out
}

// condition says how many instances of a function are ready, of all its versions
// that are to run.
func (r *runners) condition(f *pb.Function) *pb.Condition {
	var out *pb.Condition
	for _, d := range r.core.Snapshot().Deployments(f) {
		c := r.conditionOf(d)
		if _, number := gateway.FunctionOf(d.GetName()); number != 0 {
			c.Message = fmt.Sprintf("version %d: %s", number, c.GetMessage())
		}
		switch {
		case out == nil:
			out = c
		case out.GetOk() && c.GetOk():
			out.Message += "; " + c.GetMessage()
		case out.GetOk():
			out = c
		}
	}
	if out == nil {
		out = &pb.Condition{Type: "Ready", Reason: "NoVersion", Message: "none of the versions in its traffic is kept"}
	}
	return out
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// conditionOf is condition for one deployment.
func (r *runners) conditionOf(f *pb.Function) *pb.Condition {
	want := max(int(f.GetInstances()), 1)
	if f.GetScale() != nil {
		want = int(f.GetScale().GetMin())
	}
	n, why := 0, r.problems()[f.GetName()]
	for _, i := range r.instances(f.GetName()) {
		if i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
			n++
		} else if why == "" && i.GetState() != pb.InstanceState_INSTANCE_STATE_UNKNOWN {
			why = i.GetMessage()
		}
	}
	c := &pb.Condition{Type: "Ready", Ok: n >= want, Reason: "InstancesReady", Message: fmt.Sprintf("%d of %s ready", n, counted(want, "instance"))}
	if f.GetScale() != nil {
		// With none it can be called, as soon as it is prepared and there is somebody
		// to start one.
		c.Ok = c.Ok && why == "" && r.reachable(f.GetName())
		c.Message = counted(n, "instance") + " ready"
		if want > 0 {
			c.Message += fmt.Sprintf(", at least %d wanted", want)
		}
		if c.Ok && n == 0 {
			c.Reason, c.Message = "Idle", "no instance runs; the first request starts one"
		}
	}
	if c.Ok && !r.current(f.GetName()) {
		c.Ok, c.Message = false, c.Message+" of the version before, which serves until this one is ready"
	}
	switch {
	case c.Ok:
	case len(r.connected()) == 0:
		c.Reason, c.Message = "NoRunner", c.Message+": no runner is connected"
		if gone := r.gone(f.GetName()); gone != "" {
			c.Reason, c.Message = "Unknown", gone
		}
	case why != "":
		c.Reason, c.Message = "InstancesFailing", c.Message+": "+why
		switch {
		case n > 0 && !r.current(f.GetName()):
			c.Message = fmt.Sprintf("the newest version cannot run (%s of the one before ready): %s", counted(n, "instance"), why)
		case n == 0 && want == 0:
			c.Message = why
		}
	default:
		c.Reason = "InstancesStarting"
	}
	return c
}

// States of problems of functions, as in ProxyProblem.state.
const (
	stateStarting = "starting"
	stateFailing  = "failing"
	stateUnknown  = "unknown"
)

// problemStates are the states of problems by the reason of the condition behind them.
var problemStates = map[string]string{
	"InstancesStarting": stateStarting, "InstancesFailing": stateFailing, "Unknown": stateUnknown, "NoRunner": "no-runner", "NoVersion": "no-version",
}

// notReady is what is in the way of a function; nil when nothing is.
func (r *runners) notReady(f *pb.Function) *pb.ProxyProblem {
	c := r.condition(f)
	if c.GetOk() {
		return nil
	}
	return &pb.ProxyProblem{Proxy: "runner", State: problemStates[c.GetReason()], Object: f.GetName(), Detail: c.GetMessage()}
}

// waitReady waits until functions have their instances, or cannot have them, and
// returns what is in the way. Without a runner there is nothing to wait for. What is
// known of unchanged functions holds; what is known of changed ones may be of the
// version before, which this one mends. progress, if any, gets what is waited for.
func (r *runners) waitReady(ctx context.Context, changed, unchanged []*pb.Function, progress func([]*pb.ProxyProblem)) []*pb.ProxyProblem {
	for fresh := false; ; fresh = true {
		reported := r.reported.Next()
		var out []*pb.ProxyProblem
		pending := false
		for i, f := range slices.Concat(changed, unchanged) {
			problem := r.notReady(f)
			if problem == nil {
				continue
			}
			out = append(out, problem)
			stale := i < len(changed) && (!fresh || r.behind(f))
			// A runner that is lost comes back, or is given up in a moment.
			pending = pending || problem.GetState() == stateStarting || problem.GetState() == stateUnknown || stale && problem.GetState() == stateFailing
		}
		if !pending {
			return out
		}
		if progress != nil {
			progress(out)
		}
		select {
		case <-ctx.Done():
			return out
		case <-reported:
		}
	}
}

// behind reports whether what is known of a function's instances is of a version
// before: no runner has taken over the newest one, nor said that it cannot.
func (r *runners) behind(f *pb.Function) bool {
	problems := r.problems()
	return slices.ContainsFunc(r.core.Snapshot().Deployments(f), func(d *pb.Function) bool {
		return problems[d.GetName()] == "" && !r.current(d.GetName())
	})
}

// resources are the endpoint resources that may follow from the endpoints of some
// deployments: their own, and those of the deployments that they stand in for.
func (r *runners) resources(deployments []string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, name := range deployments {
		function, _ := gateway.FunctionOf(name)
		out = append(out, name)
		for _, d := range r.deployed.byFunction[function] {
			out = append(out, d.GetName())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
