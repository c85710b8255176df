package control

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// deployments are what runners are to run: each function, or those of its versions
// that get requests. When requests move from one to another, those that they move
// away from stay until the others are ready, and serve in their place meanwhile.
type deployments struct {
	// version counts changes of list.
	version uint64
	// list is everything to run, byFunction the same by function.
	list       []*pb.Function
	byFunction map[string][]*pb.Function
	// revisions are those in which deployments became what they are, by name; 0 when
	// that was before this replica began.
	revisions map[string]int64
	// numbers are those of the versions that they are, by name.
	numbers map[string]int64
	// secrets are the values of their env_secrets, by name.
	secrets map[string]map[string]string
	// moving are the functions of which something stays for the others' sake.
	moving map[string]bool
}

// plan makes what runners are to run follow a snapshot, and tells them.
func (r *runners) plan(s *gateway.Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.planLocked(s)
}

func (r *runners) planLocked(s *gateway.Snapshot) {
	old := r.deployed
	next := deployments{version: old.version, byFunction: map[string][]*pb.Function{}, moving: map[string]bool{}, revisions: map[string]int64{}, secrets: map[string]map[string]string{}}
	before := map[string]*pb.Function{}
	for _, d := range old.list {
		before[d.GetName()] = d
	}
	for _, o := range s.List(gateway.KindFunctions, "") {
		f := o.(*pb.Function)
		r.watchVersion(s, f)
		wanted := s.Deployments(f)
		if !r.allServe(wanted) {
			for _, d := range old.byFunction[f.GetName()] {
				named := slices.ContainsFunc(wanted, func(w *pb.Function) bool { return w.GetName() == d.GetName() })
				if !named && r.relied(d.GetName()) {
					wanted = append(slices.Clip(wanted), d)
					next.moving[f.GetName()] = true
				}
			}
		}
		next.byFunction[f.GetName()] = wanted
		next.list = append(next.list, wanted...)
		for _, d := range wanted {
			secrets := s.SecretEnv(d)
			if secrets != nil {
				next.secrets[d.GetName()] = secrets
			}
			switch b := before[d.GetName()]; {
			case old.version == 0:
			case b != nil && (b == d || proto.Equal(b, d)) && maps.Equal(old.secrets[d.GetName()], secrets):
				next.revisions[d.GetName()] = old.revisions[d.GetName()]
			default:
				next.revisions[d.GetName()] = s.Revision()
			}
		}
	}
	r.planned = s.Revision()
	if old.version > 0 && slices.EqualFunc(old.list, next.list, func(a, b *pb.Function) bool { return a == b || proto.Equal(a, b) }) &&
		maps.EqualFunc(old.secrets, next.secrets, maps.Equal) {
		r.deployed.moving = next.moving
		return
	}
	next.version++
	next.numbers = s.VersionsOf(next.list)
	r.deployed = next
	r.changed.Notify()
}

// allServe reports whether every one of some deployments may be relied on. The caller
// holds mu.
func (r *runners) allServe(list []*pb.Function) bool {
	return !slices.ContainsFunc(list, func(f *pb.Function) bool { return !r.relied(f.GetName()) })
}

// relied reports whether requests may be moved to a deployment: it takes them, and an
// instance is ready, or the runner says that it can be started. The caller holds mu.
func (r *runners) relied(name string) bool {
	for _, k := range r.known {
		if len(k.serve[name]) == 0 {
			continue
		}
		ready := slices.ContainsFunc(k.state.GetInstances(), func(i *pb.Instance) bool {
			return i.GetFunction() == name && i.GetState() == pb.InstanceState_INSTANCE_STATE_READY
		})
		untried := slices.ContainsFunc(k.state.GetFunctions(), func(f *pb.FunctionState) bool {
			return f.GetFunction() == name && f.GetRevision() == 0
		})
		if ready || !untried {
			return true
		}
	}
	return false
}

// serves reports whether a deployment takes requests: an instance is ready, or can be
// started for one. The caller holds mu.
func (r *runners) serves(name string) bool {
	for _, k := range r.known {
		if len(k.serve[name]) > 0 {
			return true
		}
	}
	return false
}

// current reports whether the runners that run a deployment have taken over its newest
// form.
func (r *runners) current(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.live() {
		for _, f := range k.state.GetFunctions() {
			if f.GetFunction() == name && f.GetRevision() < r.deployed.revisions[name] {
				return false
			}
		}
	}
	return true
}

// reachable reports whether a runner that is heard of takes requests of a deployment.
func (r *runners) reachable(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.live(), func(k *runner) bool { return len(k.serve[name]) > 0 })
}

// wanted is the next message to a runner that was last sent the functions of a
// version, which it brings up to date.
func (r *runners) wanted(sent *uint64) *pb.ConnectResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &pb.ConnectResponse{Revision: r.core.Snapshot().Revision()}
	if *sent == r.deployed.version {
		out.FunctionsUnchanged = true
		return out
	}
	*sent = r.deployed.version
	out.Functions = r.deployed.list
	for _, d := range out.Functions {
		if n := r.deployed.numbers[d.GetName()]; n != 0 {
			function, _ := gateway.FunctionOf(d.GetName())
			served := !r.core.served.since(gateway.VersionOf(function, n)).IsZero()
			out.Versions = append(out.Versions, &pb.DeployedVersion{Function: d.GetName(), Number: n, Served: served})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.deployed.secrets)) {
		out.Secrets = append(out.Secrets, &pb.FunctionSecrets{Function: name, Env: r.deployed.secrets[name]})
	}
	return out
}

// moved lets go of what is not needed any more, after a runner has reported. The
// caller holds mu.
func (r *runners) moved() {
	if len(r.deployed.moving) > 0 {
		r.planLocked(r.core.Snapshot())
	}
}

// standIn is a deployment that serves in the place of another one of its function
// while that is not ready; "" when there is none. The caller holds mu.
func (r *runners) standIn(name string) string {
	function, _ := gateway.FunctionOf(name)
	for _, d := range r.deployed.byFunction[function] {
		if d.GetName() != name && r.relied(d.GetName()) {
			return d.GetName()
		}
	}
	return ""
}
