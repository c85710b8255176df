package compile_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/compile"
)

var update = flag.Bool("update", false, "write the golden files")

var types = []xds.Type{xds.Listener, xds.Scope, xds.Route, xds.ExtensionConfig, xds.Cluster, xds.Endpoint, xds.Secret}

// TestGolden compares the resources of each testdata/*.txtar: "in.yaml" are the
// objects, "want/<type>/<name>" the resources as JSON. A resource that the file
// does not name is only listed in "want/names".
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range append(files, scenarios(t)...) {
		t.Run(strings.TrimSuffix(strings.TrimPrefix(file, "../../"), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			in := filledIn.Replace(section(t, a, "in.yaml"))
			s := policies.Model().Build(nil, 1, gateway.Changes{Updates: decode(t, in)})
			g, problems := compile.New(compile.Settings{
				Limiters: []compile.Endpoint{{Address: "127.0.0.1", Port: 7402}}, OTLP: compile.Endpoint{Address: "127.0.0.1", Port: 4317},
			}).Compile(compile.Input{Snapshot: s, View: compile.View{Project: "default", Gateway: "-"}, Instances: func(string) []compile.Endpoint {
				return []compile.Endpoint{{Address: "127.0.0.1", Port: 9001}, {Address: "127.0.0.1", Port: 9002}}
			}})
			got := map[string]string{"want/problems": "", "want/names": ""}
			for _, p := range problems {
				got["want/problems"] += p.Object + " " + p.Field + ": " + p.Message + "\n"
			}
			for _, typ := range types {
				for _, name := range g.Names(typ) {
					r := g.Get(typ, name)
					if strings.Contains(name, "/#/") && len(r.After) == 0 {
						continue // a scope of a shard, or a shard without hosts: all are alike
					}
					line := typ.Short() + " " + name + "\n"
					for _, ref := range r.Refs {
						line += "  -> " + ref.String() + "\n"
					}
					for _, ref := range r.After {
						line += "  after " + ref.String() + "\n"
					}
					for _, o := range r.Owners {
						line += "  of " + o + "\n"
					}
					got["want/names"] += line
					m, err := r.Body.UnmarshalNew()
					if err != nil {
						t.Fatal(err)
					}
					b, err := bootstrap.Marshal(m)
					if err != nil {
						t.Fatal(err)
					}
					got["want/"+typ.Short()+"/"+name] = string(b)
				}
			}
			for i, f := range a.Files {
				if !strings.HasPrefix(f.Name, "want/") {
					continue
				}
				want, ok := got[f.Name]
				if !ok {
					t.Errorf("%s was not made", f.Name)
				}
				if *update {
					a.Files[i].Data = []byte(want)
				} else if diff := cmp.Diff(string(f.Data), want); diff != "" {
					t.Errorf("%s (-golden +made; go test -update writes it):\n%s", f.Name, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
