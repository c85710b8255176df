package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/penstock-gateway/penstock/"

// rule says what a row of the table in ARCHITECTURE.md cannot: which foreign trees a
// package tree may not import, and why it has the row that it has.
type rule struct {
	tree string
	// never lists foreign trees that may not be imported.
	never []string
	why   string
}

var kubernetes = []string{"istio.io/", "k8s.io/", "sigs.k8s.io/"}

var rules = []rule{
	{tree: "gateway/source/kubernetes/istio/part", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "what translations see of a resource is said without knowing any"},
	{tree: "gateway/policy/cors/istio", never: []string{"github.com/envoyproxy/"},
		why: "a policy's translation from Istio knows Istio's types and the model"},
	{tree: "gateway/source/kubernetes",
		why: "a front door turns foreign resources into the model and knows nothing behind it"},
	{tree: "gateway/source", never: kubernetes,
		why: "front doors know the model only; Kubernetes and Istio types stay in gateway/source/kubernetes"},
	{tree: "gateway/policy", never: kubernetes,
		why: "a policy is compiled from the merged model to Envoy's types, and knows no other policy"},
	{tree: "gateway/policies", never: kubernetes,
		why: "the list of policies knows them and nothing else"},
	{tree: "gateway/explain", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "explain works from the model; what a policy does to a request, its own Explain says"},
	{tree: "gateway", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the model knows neither Envoy nor where resources come from; what a scale means is said once, by the scaler"},
	{tree: "xds/compile/salvage", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the search is pure: it knows parts by name"},
	{tree: "xds/compile", never: kubernetes,
		why: "the compiler is pure: no store, no delivery, no network"},
	{tree: "xds/policy", never: kubernetes,
		why: "what a policy is for proxies is said without knowing any"},
	{tree: "xds/ledger", never: kubernetes, why: "the ledger knows resources by type and name, not routes"},
	{tree: "xds/delivery", never: kubernetes, why: "delivery knows resources by type and name, not routes"},
	{tree: "internal/shadow", never: kubernetes,
		why: "the shadow tries resources as any proxy gets them, and knows neither the model nor the store"},
	{tree: "internal/access", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the guard knows the API that it guards, and nothing of what is behind it"},
	{tree: "internal/devissuer", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the issuer signs tokens, and knows the store by what it needs of it"},
	{tree: "xds/keeper", never: kubernetes,
		why: "a keeper knows resources by type and name, and the control plane by its stream"},
	{tree: "xds/bootstrap", never: kubernetes, why: "the bootstrap is one function"},
	{tree: "authn", never: kubernetes, why: "an authentication method is a policy"},
	{tree: "store", never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "the store keeps resources and knows nothing of their meaning"},
	{tree: "ratelimit", never: kubernetes, why: "the limiter needs no configuration: limits travel in descriptors"},
	{tree: "scale", never: append([]string{"github.com/envoyproxy/", "net", "os"}, kubernetes...),
		why: "the scaler is arithmetic: no clock, no process, no network, so that a simulation runs what a runner runs"},
	{tree: "functions/contract", never: append([]string{"github.com/envoyproxy/", "net", "os"}, kubernetes...),
		why: "what holds of a contract is read from the API alone"},
	{tree: "functions/runnertest", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the suite knows a runner by what it says on its stream, so that it is the same for every runner"},
	{tree: "functions", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a runner knows functions, not Envoy"},
	{tree: "internal/control/admission", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a room of the control plane names what it needs in its Params, and knows neither the other rooms nor the whole"},
	{tree: "internal/control/change", never: append([]string{"github.com/envoyproxy/", "net", "os", "sync"}, kubernetes...),
		why: "what a write does follows from the head and the write: nothing is stored, compiled or waited for"},
	{tree: "internal/control/fleet", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the fleet knows proxies and resources by name, and neither the configuration nor the runners"},
	{tree: "internal/control/quarantine", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a room of the control plane names what it needs in its Params, and knows neither the other rooms nor the whole"},
	{tree: "internal/control/salvage", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a room of the control plane names what it needs in its Params, and knows neither the other rooms nor the whole"},
	{tree: "internal/control/packages", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "a room of the control plane names what it needs in its Params, and knows neither the other rooms nor the whole"},
	{tree: "internal/control/service", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "what all services share knows none of them"},
	{tree: "internal/control/kv", never: append([]string{"github.com/envoyproxy/", "google.golang.org/"}, kubernetes...),
		why: "it follows values without knowing what they mean, nor the store but for its watch"},
	{tree: "internal/pause", never: append([]string{"github.com/envoyproxy/", "google.golang.org/"}, kubernetes...), why: "a pause knows nothing of what failed"},
	{tree: "internal/signal", never: append([]string{"github.com/envoyproxy/", "google.golang.org/"}, kubernetes...), why: "a signal carries no value, so it knows of none"},
	{tree: "internal/versioned", never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "what makes a version is read from the API alone"},
	{tree: "internal/cow", never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "a map knows nothing of what it holds"},
	{tree: "internal/console", never: append([]string{"github.com/envoyproxy/"}, kubernetes...),
		why: "the console knows lines, not who writes them"},
	{tree: "telemetry", never: append([]string{"github.com/envoyproxy/"}, kubernetes...), why: "everybody uses telemetry, so it uses nobody"},
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

// TestImports checks every package against its row of the table and its rule, and prints
// the reason when one is broken.
func TestImports(t *testing.T) {
	rows := readTable(t)
	seen, ruled := map[string]bool{}, map[string]bool{}
	for _, p := range packages(t) {
		path := strings.TrimPrefix(p.ImportPath, module)
		row, ok := rowOf(rows, path)
		if !ok {
			if !unlisted(path) {
				t.Errorf("%s has no row in the table of packages in ARCHITECTURE.md", path)
			}
			continue
		}
		r, ok := ruleOf(path)
		if ok {
			ruled[r.tree] = true
		}
		seen[row.tree] = true
		for _, imp := range p.Imports {
			own, ours := strings.CutPrefix(imp, module)
			switch {
			case !ours:
				for _, n := range r.never {
					if strings.HasPrefix(imp, n) {
						t.Errorf("%s imports %s: %s", path, imp, r.why)
					}
				}
			case !row.everything && !in(own, "gen") && !sameRow(rows, own, row) && !allowed(rows, own, row.may):
				t.Errorf("%s imports %s, which the table in ARCHITECTURE.md does not allow %s: %s", path, own, row.tree, r.why)
			}
		}
	}
	for _, row := range rows {
		if !seen[row.tree] && !in(row.tree, "gen") && !in(row.tree, "proto") {
			t.Errorf("the row of %s in ARCHITECTURE.md is of no package: mend the table", row.tree)
		}
	}
	for _, r := range rules {
		if !ruled[r.tree] {
			t.Errorf("the rule for %s matches no package: mend the rule", r.tree)
		}
	}
}

// sameRow reports whether a package is below a tree, and has no longer row of its own.
func sameRow(rows []row, own string, of row) bool {
	r, ok := rowOf(rows, own)
	return ok && r.tree == of.tree
}

// allowed reports whether a package is one of some trees' roots or below a tree that is
// named with its sub-trees ("gateway/policy", "authn"), or one that everybody may import.
func allowed(rows []row, own string, may []string) bool {
	if r, ok := rowOf(rows, own); ok && r.cellar {
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
