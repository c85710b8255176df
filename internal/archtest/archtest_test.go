package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/penstock-gateway/penstock/"

// rule says what a package tree may import of this module; a tree is a path
// prefix. Everything that no rule names is free (cmd, internal/control, tests).
type rule struct {
	tree string
	// may lists the trees that may be imported besides gen/ and the own tree.
	may []string
	// never lists foreign trees that may not be imported.
	never []string
	why   string
}

var kubernetes = []string{"istio.io/", "k8s.io/", "sigs.k8s.io/"}

// cellar are packages that anybody may import, and that import nothing of this module.
var cellar = []string{"internal/signal"}

var rules = []rule{
	{tree: "gateway/source/kubernetes/istio/part", may: nil, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "what translations see of a resource is said without knowing any"},
	{tree: "gateway/policy/cors/istio", may: []string{"gateway", "gateway/source/kubernetes/istio/part"}, never: []string{"github.com/envoyproxy/"},
		why: "a policy's translation from Istio knows Istio's types and the model"},
	{tree: "gateway/source/kubernetes", may: []string{"gateway", "gateway/source/file", "gateway/policy/cors/istio"},
		why: "a front door turns foreign resources into the model and knows nothing behind it"},
	{tree: "gateway/source", may: []string{"gateway", "gateway/explain", "gateway/source", "internal/suggest"}, never: kubernetes,
		why: "front doors know the model only; Kubernetes and Istio types stay in gateway/source/kubernetes"},
	{tree: "gateway/policy", may: []string{"gateway", "xds", "xds/policy", "ratelimit"}, never: kubernetes,
		why: "a policy is compiled from the merged model to Envoy's types, and knows no other policy"},
	{tree: "gateway/policies", may: []string{"gateway", "gateway/policy", "authn", "xds/policy"}, never: kubernetes,
		why: "the list of policies knows them and nothing else"},
	{tree: "gateway/explain", may: []string{"gateway"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "explain works from the model; what a policy does to a request, its own Explain says"},
	{tree: "gateway", may: []string{"internal/cow", "internal/suggest", "internal/unknown", "functions/scale"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the model knows neither Envoy nor where resources come from; what a scale means is said once, by the scaler"},
	{tree: "xds/compile/salvage", may: nil, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the search is pure: it knows parts by name"},
	{tree: "xds/compile", may: []string{"gateway", "gateway/policies", "gateway/policy", "authn", "xds", "xds/policy"}, never: kubernetes,
		why: "the compiler is pure: no store, no delivery, no network"},
	{tree: "xds/policy", may: []string{"gateway", "xds"}, never: kubernetes,
		why: "what a policy is for proxies is said without knowing any"},
	{tree: "xds/ledger", may: []string{"xds"}, never: kubernetes, why: "the ledger knows resources by type and name, not routes"},
	{tree: "xds/delivery", may: []string{"xds", "xds/ledger"}, never: kubernetes, why: "delivery knows resources by type and name, not routes"},
	{tree: "internal/shadow", may: []string{"xds", "xds/ledger", "xds/delivery", "xds/bootstrap", "internal/launch"}, never: kubernetes,
		why: "the shadow tries resources as any proxy gets them, and knows neither the model nor the store"},
	{tree: "internal/access", may: []string{"gateway", "gateway/source/api", "internal/pki", "internal/keyfile", "internal/launch", "internal/socket"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the guard knows the API that it guards, and nothing of what is behind it"},
	{tree: "internal/devissuer", may: []string{"gateway/source/api"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the issuer signs tokens, and knows the store by what it needs of it"},
	{tree: "xds/keeper", may: []string{"xds", "xds/delivery", "internal/pki", "internal/keyfile", "internal/socket"}, never: kubernetes,
		why: "a keeper knows resources by type and name, and the control plane by its stream"},
	{tree: "xds/bootstrap", may: []string{"xds"}, never: kubernetes, why: "the bootstrap is one function"},
	{tree: "authn", may: []string{"gateway", "xds", "xds/policy"}, never: kubernetes, why: "an authentication method is a policy"},
	{tree: "store", may: []string{"internal/keyfile", "internal/unknown"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "the store keeps resources and knows nothing of their meaning"},
	{tree: "ratelimit", may: []string{"telemetry"}, never: kubernetes, why: "the limiter needs no configuration: limits travel in descriptors"},
	{tree: "functions/scale", may: nil, never: append([]string{"github.com/envoyproxy/", "net", "os"}, kubernetes...),
		why: "the scaler is arithmetic: no clock, no process, no network, so that a simulation runs what a runner runs"},
	{tree: "functions/runnertest", may: []string{"functions/archive"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the suite knows a runner by what it says on its stream, so that it is the same for every runner"},
	{tree: "functions", may: []string{"telemetry", "internal/launch"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a runner knows functions, not Envoy"},
	{tree: "internal/control/admission", may: []string{"gateway/source/api", "internal/control/kv", "internal/control/service", "internal/pki", "store"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a room of the control plane names what it needs in its Params, and knows neither the other rooms nor the whole"},
	{tree: "internal/control/service", may: []string{"gateway/source/api", "store"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "what all services share knows none of them"},
	{tree: "internal/control/kv", may: nil, never: append([]string{"github.com/envoyproxy/", "google.golang.org/"}, kubernetes...),
		why: "it follows values without knowing what they mean, nor the store but for its watch"},
	{tree: "internal/signal", may: nil, never: append([]string{"github.com/envoyproxy/", "google.golang.org/"}, kubernetes...), why: "a signal carries no value, so it knows of none"},
	{tree: "internal/cow", may: nil, never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "a map knows nothing of what it holds"},
	{tree: "internal/console", may: []string{"telemetry"}, never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the console knows lines, not who writes them"},
	{tree: "telemetry", may: nil, never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "everybody uses telemetry, so it uses nobody"},
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func in(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

// ruleOf is the first rule whose tree holds the package, so longer trees stand
// before the trees that hold them.
func ruleOf(path string) (rule, bool) {
	for _, r := range rules {
		if in(path, r.tree) {
			return r, true
		}
	}
	return rule{}, false
}

// TestImports checks every package against its rule and prints the reason of a
// rule that is broken.
func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		r, ok := ruleOf(path)
		if !ok {
			continue
		}
		seen[r.tree] = true
		for _, imp := range p.Imports {
			own, ours := strings.CutPrefix(imp, module)
			if !ours {
				for _, n := range r.never {
					if strings.HasPrefix(imp, n) {
						t.Errorf("%s imports %s: %s", path, imp, r.why)
					}
				}
				continue
			}
			if in(own, "gen") || in(own, r.tree) || allowed(own, r.may) {
				continue
			}
			t.Errorf("%s imports %s: %s", path, own, r.why)
		}
	}
	for _, r := range rules {
		if !seen[r.tree] {
			t.Errorf("the rule for %s matches no package: mend the rule", r.tree)
		}
	}
}

// allowed tells whether a package is one of some trees' roots or below a tree
// that is named with its sub-trees ("gateway/policy", "authn"), or in the cellar.
func allowed(own string, may []string) bool {
	if slices.Contains(cellar, own) {
		return true
	}
	for _, m := range may {
		if own == m || (m != "gateway" && m != "xds" && in(own, m)) {
			return true
		}
	}
	return false
}

// TestNobodyImportsTheBinary keeps cmd, examples and the test harnesses leaves.
func TestNobodyImportsTheBinary(t *testing.T) {
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		for _, imp := range p.Imports {
			own, ours := strings.CutPrefix(imp, module)
			if !ours {
				continue
			}
			if in(own, "cmd") || in(own, "examples") || (own == "internal/control" && !in(path, "cmd") && !in(path, "bench")) {
				t.Errorf("%s imports %s: only the binary joins everything", path, own)
			}
			if in(own, "functions/runnertest") {
				t.Errorf("%s imports %s: the conformance suite is for tests", path, own)
			}
			if in(own, "internal/envoytest") && !in(path, "bench") {
				t.Errorf("%s imports %s: test harnesses are for tests", path, own)
			}
		}
	}
}

// TestRaceExceptions: what `make race` leaves out is there, and has a reason.
func TestRaceExceptions(t *testing.T) {
	b, err := os.ReadFile("../../.ci/race-exceptions")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		pkg, reason, _ := strings.Cut(strings.TrimSpace(line), " ")
		tests, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
		if err != nil || len(tests) == 0 || strings.TrimSpace(reason) == "" || seen[pkg] {
			t.Errorf("%q: it must be a package with tests, once, and have a reason", line)
		}
		seen[pkg] = true
	}
}
