package istio_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	"github.com/penstock-gateway/penstock/xds/compile"
)

// TestExamplesCompileToTheSameBytes: neither labels, annotations nor origin of
// the two forms reach the proxies. Versions are hashes of the bytes.
func TestExamplesCompileToTheSameBytes(t *testing.T) {
	versions := func(name string) map[string]string {
		objects, errs := file.Load(examples + name)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		for _, o := range objects {
			policies.Model().Normalize(o)
		}
		generation, problems := compile.New(compile.Settings{}).Compile(compile.Input{
			Snapshot:  policies.Model().Build(nil, 1, gateway.Changes{Updates: objects}),
			View:      compile.View{Project: "default", Gateway: "-"},
			Instances: func(string) []compile.Endpoint { return nil },
		})
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		out := map[string]string{}
		for _, kind := range generation.Types() {
			for r := range generation.All(kind) {
				out[kind.Short()+"/"+r.Name] = r.Version
			}
		}
		return out
	}
	ours, istios := versions("penstock.yaml"), versions("istio.yaml")
	if _, ok := ours["Cluster/projects/default/backends/catalog|v2"]; !ok {
		t.Errorf("the subset's cluster is missing: %v", ours)
	}
	if diff := cmp.Diff(ours, istios); diff != "" {
		t.Errorf("(-penstock.yaml +istio.yaml):\n%s", diff)
	}
}
