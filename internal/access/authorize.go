package access

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// check decides whether a call is allowed as far as its rule goes.
func (s *Service) check(id *Identity, r rule, req proto.Message) error {
	if r.anybody {
		return nil
	}
	has := s.rights(id)
	project := AllProjects
	if w, ok := req.(*pb.WatchRequest); ok && r.watches {
		return mayWatch(id, has, w.GetKinds())
	}
	switch {
	case r.somewhere:
		if has.somewhere(r.verb, r.kind) {
			return nil
		}
	case r.scope != nil:
		if project = r.scope(req); project == anyProject {
			if has.somewhere(r.verb, r.kind) {
				return nil
			}
			project = AllProjects
		}
	}
	if has.may(r.verb, r.kind, project) {
		return nil
	}
	return refusal(id, right{r.verb, r.kind, project})
}

// mayWatch refuses who would see nothing of the kinds that are watched: that is no
// empty list.
func mayWatch(id *Identity, has rights, watched []string) error {
	if len(watched) == 0 {
		watched = resources
	}
	var lacking []right
	for _, k := range watched {
		kind := gateway.KindFor(k)
		if kind == nil || has.somewhere("read", kind.Owner) {
			return nil
		}
		lacking = append(lacking, right{"read", kind.Owner, AllProjects})
	}
	return refusal(id, lacking...)
}

// right is a verb on a kind in a project.
type right struct{ verb, kind, project string }

func (r right) String() string {
	if r.project == AllProjects {
		return r.verb + " " + r.kind + " in all projects"
	}
	return r.verb + " " + r.kind + " in the project " + r.project
}

// refusal is the error of a caller who lacks rights: all at once.
func refusal(id *Identity, lacking ...right) error {
	var lines []string
	for _, l := range lacking {
		lines = append(lines, l.String())
	}
	slices.Sort(lines)
	return status.Errorf(codes.PermissionDenied, "%s may not %s (an administrator changes that with `penstock access grant`)",
		id.Name, strings.Join(slices.Compact(lines), ", nor "))
}

// caller is what the API needs to know of who calls.
func (s *Service) apiCaller(id *Identity) *api.Caller {
	return &api.Caller{
		Name: id.Name,
		MayRead: func(name string) bool {
			kind := kindOf(name)
			return kind != "" && s.rights(id).may("read", kind, projectOf(name))
		},
		MayReadProject: func(kind, project string) bool { return s.rights(id).may("read", kind, project) },
		MayChange:      func(changes []api.Touch) error { return s.mayChange(id, changes) },
	}
}

// mayChange checks the right to each object of a write, and names all that lack.
func (s *Service) mayChange(id *Identity, changes []api.Touch) error {
	has := s.rights(id)
	var lacking []right
	need := func(verb, kind, project string) {
		if !has.may(verb, kind, project) {
			lacking = append(lacking, right{verb, kind, project})
		}
	}
	for _, c := range changes {
		kind, project := kindOf(c.Name), projectOf(c.Name)
		if kind == "" {
			return status.Errorf(codes.InvalidArgument, "name %.256q is not that of a resource", c.Name)
		}
		switch {
		case c.Look:
			need("read", kind, project)
			continue
		case c.New == nil:
			need("delete", kind, project)
		case c.Old == nil:
			need("create", kind, project)
		case c.Unchanged != nil && !has.may("update", kind, project) && c.Unchanged():
			need("read", kind, project) // it is told that it is so
		default:
			need("update", kind, project)
		}
		if c.Pruned {
			need(verbPrune, "configuration", project)
		}
		if f, ok := c.New.(*pb.Function); ok {
			old, _ := c.Old.(*pb.Function)
			if relaxes(old, f, c.Versions) {
				need(verbRelax, "isolation", project)
			}
			if usesMore(old, f, c.Versions) {
				need(verbUse, "secrets", project)
			}
		}
	}
	if len(lacking) > 0 {
		return refusal(id, lacking...)
	}
	return nil
}

// relaxes reports whether a function, or a version of it that gets requests, is kept
// apart less than by default or less than before. Who may change the code of such a
// function could do what it could, so every change of one counts.
func relaxes(old, next *pb.Function, versions []*pb.Function) bool {
	for _, f := range append([]*pb.Function{next}, versions...) {
		if privileged(f.GetIsolation()) || old != nil && looser(old.GetIsolation(), f.GetIsolation()) {
			return true
		}
	}
	return false
}

// privileged reports whether instances get more of the machine than by default.
func privileged(i *pb.Isolation) bool {
	return i.GetLevel() == pb.IsolationLevel_ISOLATION_LEVEL_NONE || i.GetNetwork() == pb.NetworkAccess_NETWORK_ACCESS_HOST ||
		len(i.GetWritable()) > 0 || len(i.GetNetworkAllow()) > 0
}

// looser reports whether instances get more than before.
func looser(old, next *pb.Isolation) bool {
	const sandbox, none = pb.IsolationLevel_ISOLATION_LEVEL_SANDBOX, pb.NetworkAccess_NETWORK_ACCESS_NONE
	return old.GetLevel() == sandbox && next.GetLevel() != sandbox || old.GetNetwork() == none && next.GetNetwork() != none
}

// usesMore reports whether a function gets the value of a secret that it did not get
// before: who writes its code can read it.
func usesMore(old, next *pb.Function, versions []*pb.Function) bool {
	had := map[string]bool{}
	for _, k := range old.GetEnvSecrets() {
		had[key(old, k)] = true
	}
	for _, f := range append([]*pb.Function{next}, versions...) {
		for _, k := range f.GetEnvSecrets() {
			if !had[key(next, k)] {
				return true
			}
		}
	}
	return false
}

func key(f *pb.Function, k *pb.SecretKey) string {
	return gateway.Resolve(projectOf(f.GetName()), gateway.KindSecrets, k.GetSecret()) + "#" + k.GetKey()
}

// Check reports whether the caller of ctx has a right; used by parts of the control
// plane that no rule covers.
func (s *Service) Check(ctx context.Context, verb, kind, project string) error {
	id := From(ctx)
	if id == nil {
		return status.Error(codes.Unauthenticated, nobody)
	}
	if !s.rights(id).may(verb, kind, project) {
		return refusal(id, right{verb, kind, project})
	}
	return nil
}

// describeGrant is a grant in words.
func describeGrant(g *pb.Grant) string {
	if g.GetProject() == AllProjects {
		return g.GetRole() + " in all projects"
	}
	return fmt.Sprintf("%s in the project %s", g.GetRole(), g.GetProject())
}
