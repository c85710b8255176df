package access

import (
	"fmt"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// AllProjects is the scope of what belongs to no project, and of rights in all.
const AllProjects = "*"

// resources are the kinds of the configuration.
var resources = gateway.Writable()

// Verbs that are not of every resource.
const (
	verbUse      = "use"      // refer to a secret whose value a function then has
	verbRelax    = "relax"    // have a function kept apart less than by default, or less than before
	verbInvoke   = "invoke"   // call a function past the gateway
	verbRollback = "rollback" // go back to an older revision
	verbPrune    = "prune"    // delete what a set no longer holds
	verbRestore  = "restore"  // put a backup in the place of everything
	verbMint     = "mint"     // have the development issuer sign a token
)

// vocabulary is every verb with the kinds that it goes with. What is not here is
// nobody's right.
var vocabulary = map[string][]string{
	"read":       append(slices.Clone(resources), "logs", "status", "history", "proxies", "metrics", "traces", "quarantine", "debug", "access", "audit"),
	"create":     append(slices.Clone(resources), "packages", "join-tokens", "access", "backups"),
	"update":     append(slices.Clone(resources), "proxies", "quarantine", "access"),
	"delete":     append(slices.Clone(resources), "access"),
	verbUse:      {"secrets"},
	verbRelax:    {"isolation"},
	verbInvoke:   {"functions"},
	verbRollback: {"configuration"},
	verbPrune:    {"configuration"},
	verbRestore:  {"backups"},
	verbMint:     {"dev-tokens"},
}

// Verbs and kinds, for messages and completion.
func verbs() []string {
	return []string{"read", "create", "update", "delete", verbUse, verbRelax, verbInvoke, verbRollback, verbPrune, verbRestore, verbMint}
}

func kinds() []string {
	var out []string
	for _, v := range verbs() {
		for _, k := range vocabulary[v] {
			if !slices.Contains(out, k) {
				out = append(out, k)
			}
		}
	}
	return out
}

func permissions(verb string, kinds ...string) *pb.Permissions {
	return &pb.Permissions{Verbs: []string{verb}, Kinds: kinds}
}

// notSecrets are the resources that an editor writes.
var notSecrets = slices.DeleteFunc(slices.Clone(resources), func(k string) bool { return k == "secrets" })

// Names of the built-in roles.
const (
	RoleViewer, RoleEditor, RoleDeployer, RoleAdmin = "viewer", "editor", "deployer", "admin"
)

var looks = permissions("read", append(slices.Clone(notSecrets), "logs", "status", "history", "proxies", "metrics", "traces", "quarantine")...)

// builtin are the roles that are always there.
var builtin = []*pb.Role{
	{Name: RoleViewer, Description: "sees the configuration and its state, but no names of secrets", Permissions: []*pb.Permissions{looks}},
	{Name: RoleDeployer, Description: "deploys functions: code, scale, versions; sees their logs and history", Permissions: []*pb.Permissions{
		permissions("read", "functions", "routes", "logs", "status", "history"),
		permissions("create", "functions", "packages"), permissions("update", "functions"), permissions(verbInvoke, "functions"),
	}},
	{Name: RoleEditor, Description: "changes the configuration, but neither secrets nor how far functions are kept apart", Permissions: []*pb.Permissions{
		looks, permissions("read", "secrets"), permissions(verbUse, "secrets"),
		permissions("create", append(slices.Clone(notSecrets), "packages")...),
		permissions("update", append(slices.Clone(notSecrets), "quarantine")...), permissions("delete", notSecrets...),
		permissions(verbInvoke, "functions"), permissions(verbRollback, "configuration"), permissions(verbPrune, "configuration"),
	}},
	{Name: RoleAdmin, Description: "may do everything", Permissions: []*pb.Permissions{permissions("*", "*")}},
}

func init() {
	for _, r := range builtin {
		r.Builtin = true
	}
}

// permits reports whether a role has a permission.
func permits(r *pb.Role, verb, kind string) bool {
	if !slices.Contains(vocabulary[verb], kind) {
		return false
	}
	is := func(list []string, s string) bool { return slices.Contains(list, "*") || slices.Contains(list, s) }
	return slices.ContainsFunc(r.GetPermissions(), func(p *pb.Permissions) bool {
		return is(p.GetVerbs(), verb) && is(p.GetKinds(), kind)
	})
}

// checkRole finds what a role says in vain.
func checkRole(r *pb.Role) error {
	var bad []string
	known := kinds()
	for i, p := range r.GetPermissions() {
		for _, v := range p.GetVerbs() {
			if v != "*" && vocabulary[v] == nil {
				bad = append(bad, fmt.Sprintf("permissions[%d]: the verb %.64q is not one of %s", i, v, strings.Join(verbs(), ", ")))
			}
		}
		for _, k := range p.GetKinds() {
			if k != "*" && !slices.Contains(known, k) {
				bad = append(bad, fmt.Sprintf("permissions[%d]: the kind %.64q is not one of %s", i, k, strings.Join(known, ", ")))
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%s", strings.Join(bad, "\n"))
	}
	return nil
}

// rights are the grants of a caller, with the roles that they name.
type rights struct {
	owner  bool
	grants []*pb.Grant
	roles  map[string]*pb.Role
}

// may reports whether a right is held in a project, or in all of them (AllProjects).
func (r rights) may(verb, kind, project string) bool { return r.by(verb, kind, project) != "" }

// by is the role that gives a right; "" when none does.
func (r rights) by(verb, kind, project string) string {
	if r.owner {
		return RoleAdmin
	}
	for _, g := range r.grants {
		if (g.GetProject() == AllProjects || g.GetProject() == project) && r.roles[g.GetRole()] != nil && permits(r.roles[g.GetRole()], verb, kind) {
			return g.GetRole()
		}
	}
	return ""
}

// somewhere reports whether a right is held in at least one project.
func (r rights) somewhere(verb, kind string) bool {
	if r.owner {
		return true
	}
	return slices.ContainsFunc(r.grants, func(g *pb.Grant) bool { return r.may(verb, kind, g.GetProject()) })
}

// missing returns what somebody with these rights lacks to hand a role on: nobody
// can give what he does not hold.
func (r rights) missing(role *pb.Role, project string) []string {
	var out []string
	for _, v := range verbs() {
		for _, k := range vocabulary[v] {
			if permits(role, v, k) && !r.may(v, k, project) {
				out = append(out, v+" "+k)
			}
		}
	}
	return out
}
