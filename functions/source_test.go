package functions_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestProjectSources: functions of a project have their sources in its own folder, so that
// who deploys there reads no other project's.
func TestProjectSources(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	for _, dir := range []string{"app", "shop/app", "bank/app", "shopping"} {
		write(t, filepath.Join(root, dir, "app.py"), hello)
	}
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	of := func(project, id, from string) *pb.Function {
		return python(id, "app.handler", source(from), func(f *pb.Function) { f.Name = "projects/" + project + "/functions/" + id })
	}
	const refused = "is not in the folder of project shop"
	cases := map[string]struct {
		f    *pb.Function
		want string
	}{
		"own":     {of("shop", "own", "shop/app"), ""},
		"dotted":  {of("shop", "dotted", "./shop//app"), ""},
		"default": {of("default", "default", "bank/app"), ""},
		"top":     {of("shop", "top", "app"), refused},
		"other":   {of("shop", "other", "bank/app"), refused},
		"back":    {of("shop", "back", "shop/../bank/app"), refused},
		"alike":   {of("shop", "alike", "shopping"), refused},
		"all":     {of("shop", "all", "."), refused},
		"outside": {of("shop", "outside", "../shop"), refused},
		"root":    {of("shop", "root", "/etc"), refused},
	}
	var wanted []*pb.Function
	for _, c := range cases {
		wanted = append(wanted, c.f)
	}
	r.want(wanted...)
	for id, c := range cases {
		s := r.await("what becomes of "+id, func(s *pb.RunnerState) bool {
			for _, i := range s.GetInstances() {
				if i.GetFunction() == c.f.GetName() && i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
					return true
				}
			}
			return s.GetProblems()[c.f.GetName()] != ""
		})
		if got := s.GetProblems()[c.f.GetName()]; c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", id, got, c.want)
		}
	}
}
