package gateway

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// references between objects: each row adds objects to the same world and names
// what Check says of the last of them.
func TestCheck(t *testing.T) {
	const base = `
gateway g {'listeners': [{'name': 'http', 'port': 80}]}
backend b {'static': {'endpoints': [{'address': '10.0.0.1', 'port': 80}]}, 'subsets': [{'name': 'v1', 'labels': {'k': 'v'}}]}
function f {'source': 'f'}
secret keys {'jwks': '{}'}
secret cert {'certificate': {'chain': 'x'}}
consumer c {'jwt': {'issuer': 'i', 'subject': 's'}}
`
	auth := func(rest string) string {
		return `route r {'rules': [{'directResponse': {'status': 200}}], 'policies': {'authentication': {'jwt': {'issuer': 'i', ` + rest + `}}}}`
	}
	for _, row := range []struct{ object, field, message string }{
		{`route r {'gateways': ['g', 'gateways/g', 'projects/p/gateways/g'], 'rules': [{'forward': {'backends': [{'backend': 'b', 'subset': 'v1'}, {'backend': 'functions/f'}]}}]}`, "", ""},
		{`route r {'gateways': ['none'], 'rules': []}`, "gateways[0]", "projects/p/gateways/none does not exist; create it"},
		{`route r {'rules': [{'forward': {'backends': [{'backend': 'f'}]}}]}`, "rules[0].forward.backends[0].backend", "projects/p/backends/f does not exist"},
		{`route r {'rules': [{'forward': {'backends': [{'backend': 'b', 'subset': 'v2'}]}}]}`, "rules[0].forward.backends[0].subset", `has no subset "v2"; it has v1`},
		{`route r {'rules': [{'forward': {'backends': [{'backend': 'b', 'port': 80}]}}]}`, "", ""},
		{`route r {'rules': [{'forward': {'backends': [{'backend': 'b', 'port': 81}]}}]}`, "rules[0].forward.backends[0].port", `has no endpoint with port 81; it has [80]`},
		{`route r {'rules': [{'forward': {'backends': [{'backend': 'functions/f', 'port': 81}]}}]}`, "rules[0].forward.backends[0].port", `no port to choose`},
		{auth(`'jwksSecret': 'keys', 'consumers': ['c']`), "", ""},
		{auth(`'jwksSecret': 'none'`), "policies.authentication.jwt.jwks_secret", "projects/p/secrets/none does not exist"},
		{auth(`'jwksSecret': 'cert'`), "policies.authentication.jwt.jwks_secret", "is a secret with certificate; jwks_secret needs one with jwks"},
		{auth(`'jwksSecret': 'keys', 'consumers': ['d']`), "policies.authentication.jwt.consumers[0]", "projects/p/consumers/d does not exist"},
		{auth(`'issuer': 'j', 'jwksSecret': 'keys', 'consumers': ['c']`), "policies.authentication.jwt.consumers[0]", `is known by tokens of issuer "i"`},
		{`gateway h {'listeners': [{'name': 'a', 'port': 1, 'tls': {'certificates': ['cert']}}]}`, "", ""},
		{`gateway h {'listeners': [{'name': 'a', 'port': 1, 'tls': {'certificates': ['keys']}}]}`, "listeners[0].tls.certificates[0]", "needs one with certificate"},
		{`consumer d {'jwt': {'issuer': 'i', 'subject': 's'}}`, "jwt", "projects/p/consumers/c has the same issuer and subject"},
		{`consumer d {'jwt': {'issuer': 'i', 'subject': 't'}}`, "", ""},
	} {
		object := strings.Replace(row.object, `'issuer': 'i', 'issuer'`, `'issuer'`, 1)
		all := objects(t, base+object)
		s := model.Build(nil, 1, Changes{Updates: all})
		expect(t, s.Check(all[len(all)-1].GetName()), row.field, row.message)
	}
}

// TestProblemsComeAndGo: what refers to an object is looked at again when the
// object comes, changes or goes, and its entries never get less protection.
func TestProblemsComeAndGo(t *testing.T) {
	s := model.Build(nil, 1, Changes{Updates: objects(t, `
gateway g {'listeners': [{'name': 'http', 'port': 80}]}
route r {'rules': [{'forward': {'backends': [{'backend': 'b', 'weight': 1}, {'backend': 'c', 'weight': 3}]}, 'policies': {'authentication': {'jwt': {'issuer': 'i', 'audiences': ['a'], 'jwksSecret': 'k'}}}}]}
`)})
	entry := func() *Entry { return s.Hosts("projects/p/gateways/g", "http")[0].Entries[0] }
	state := func(problems, targets int, broken bool) {
		t.Helper()
		e := entry()
		if got := s.Problems(); len(got) != problems || len(e.Backends) != targets || (e.Problem != "") != broken {
			t.Errorf("problems %v, %d targets, problem of the entry %q", texts(got), len(e.Backends), e.Problem)
		}
	}
	state(3, 0, true)
	s = model.Build(s, 2, Changes{Updates: objects(t, "backend b {}\nbackend c {}")})
	state(1, 2, true)
	s = model.Build(s, 3, Changes{Updates: objects(t, "secret k {'jwks': '{}'}")})
	state(0, 2, false)
	s = model.Build(s, 4, Changes{Deletes: []string{"projects/p/backends/c"}})
	state(1, 1, false)
	s = model.Build(s, 5, Changes{Deletes: []string{"projects/p/backends/b"}})
	state(2, 0, true)
	if !strings.Contains(entry().Problem, "no backend") {
		t.Error(entry().Problem)
	}
	if got := s.Referrers("projects/p/backends/b"); !slices.Equal(got, []string{"projects/p/routes/r"}) {
		t.Error(got)
	}
	s = model.Build(s, 6, Changes{Deletes: []string{"projects/p/routes/r"}})
	if len(s.Problems()) != 0 || len(s.Referrers("projects/p/backends/b")) != 0 || len(s.Hosts("projects/p/gateways/g", "http")) != 0 {
		t.Error("the route left something behind")
	}
}

// TestForeignProjects: objects of other projects are never reached, whatever a
// stored reference says.
func TestForeignProjects(t *testing.T) {
	s := model.Build(nil, 1, Changes{Updates: objects(t, `
gateway g {'listeners': [{'name': 'http', 'port': 80}]}
backend b {}
route r {"name": "projects/q/routes/r", 'gateways': ['projects/p/gateways/g'], 'rules': [{'forward': {'backends': [{'backend': 'projects/p/backends/b'}]}}]}
route s {"name": "projects/q/routes/s", 'rules': [{'directResponse': {'status': 200}}]}
`)})
	if h := s.Hosts("projects/p/gateways/g", "http"); len(h) != 0 {
		t.Errorf("a route of another project is served: %s", hostNames(h))
	}
	if got := s.Problems(); len(got) != 2 || !strings.Contains(got[0].Message, "another project") {
		t.Error(texts(got))
	}
}

func TestEffective(t *testing.T) {
	const token = `'jwt': {'issuer': 'i', 'audiences': ['b', 'a'], 'jwksSecret': 'k'}`
	s := model.Build(nil, 1, Changes{Updates: objects(t, `
secret k {'jwks': '{}'}
gateway g {'listeners': [{'name': 'http', 'port': 80}], 'policies': {'timeout': {'request': '1s', 'idle': '2s'}, 'retry': {'idempotent': {'attempts': 1, 'on': ['RETRY_ON_RESET']}}, 'authentication': {`+token+`}, 'rateLimit': {'limits': [{'name': 'g'}]}, 'headers': {'request': {'remove': ['a']}}}}
route r {'rules': [{'directResponse': {'status': 200}, 'policies': {'timeout': {'idle': '0s'}, 'retry': {'idempotent': {'attempts': 0}, 'other': {}}, 'authentication': {`+strings.Replace(token, "'k'", "'secrets/k'", 1)+`}, 'rateLimit': {'limits': [{'name': 'r'}]}, 'headers': {'request': {'remove': ['b']}}}}, {'matches': [{'path': {'exact': '/'}}], 'directResponse': {'status': 200}}],
  'policies': {'timeout': {'request': '3s'}, 'authentication': {'jwt': {'issuer': 'j', 'audiences': ['a'], 'jwksSecret': 'k'}}}}
`)})
	byRule := map[string]*Effective{}
	for _, e := range s.Hosts("projects/p/gateways/g", "http")[0].Entries {
		byRule[e.RuleName] = e.Policies
	}
	e := byRule["rule-0"]
	if got := valueOf[*pb.TimeoutPolicy](e, "timeout").Merged; got.GetRequest().AsDuration().String() != "3s" || got.Idle == nil || got.GetIdle().AsDuration() != 0 {
		t.Errorf("timeout %v", got)
	}
	want := &pb.RetryPolicy{Idempotent: &pb.RetryRule{Attempts: proto.Uint32(0), On: []pb.RetryOn{pb.RetryOn_RETRY_ON_RESET}}}
	if got := valueOf[*pb.RetryPolicy](e, "retry").Merged; !proto.Equal(got, want) {
		t.Errorf("retry %v, want %v", got, want)
	}
	for field, want := range map[string]string{
		"timeout.request": "projects/p/routes/r policies", "timeout.idle": "projects/p/routes/r rules[0].policies",
		"retry.idempotent.attempts": "projects/p/routes/r rules[0].policies", "retry.idempotent.on": "projects/p/gateways/g policies",
		"retry.other.attempts": "default",
	} {
		got := "default"
		if from := e.From(field); from.Object != nil {
			got = from.Object.GetName() + " " + from.Path
		}
		if got != want {
			t.Errorf("%s is from %s, want %s", field, got, want)
		}
	}
	// The rule asks for the same as the gateway, in other words: once.
	if got := valueOf[*pb.AuthenticationPolicy](e, "authentication").Levels; len(got) != 2 || got[0].Value.GetJwt().GetIssuer() != "i" || got[1].Value.GetJwt().GetIssuer() != "j" || !e.Protected() {
		t.Errorf("authentication %v", got)
	}
	limits, headers := valueOf[*pb.RateLimitPolicy](e, "rate_limit").Levels, valueOf[*pb.HeadersPolicy](e, "headers").Levels
	if len(limits) != 2 || limits[0].Value.GetLimits()[0].GetName() != "g" || len(headers) != 2 || headers[1].Source.Path != "rules[0].policies" {
		t.Errorf("limits %v headers %v", limits, headers)
	}
	if e := byRule["rule-1"]; valueOf[*pb.TimeoutPolicy](e, "timeout").Merged.GetIdle().AsDuration().String() != "2s" || e.From("timeout.idle").Object.GetName() != "projects/p/gateways/g" {
		t.Errorf("rule-1: %v", e)
	}
	none := model.merge(level{}, level{})
	if len(none.values) != 0 || none.Protected() || none.From("timeout.request").Object != nil {
		t.Error("policies out of nothing")
	}
}

func TestNames(t *testing.T) {
	for _, row := range [][4]string{
		{"p", "backends", "x", "projects/p/backends/x"}, {"p", "backends", "functions/x", "projects/p/functions/x"},
		{"p", "backends", "projects/q/backends/x", "projects/q/backends/x"}, {"p", "secrets", "a.b", "projects/p/secrets/a.b"},
	} {
		if got := Resolve(row[0], row[1], row[2]); got != row[3] {
			t.Errorf("%v: got %s", row, got)
		}
	}
	for _, o := range emptyObjects() {
		if got := FromResource(ToResource(o)); got != o {
			t.Errorf("%T becomes %T", o, got)
		}
	}
	if FromResource(nil) != nil || FromResource(&pb.Resource{}) != nil || FromResource(&pb.Resource{Kind: &pb.Resource_Route{}}) != nil || ToResource(nil) != nil {
		t.Error("nil is not nil")
	}
	project, kind, id, err := KindOf("projects/p-1/routes/a.b-c")
	if project != "p-1" || kind != "routes" || id != "a.b-c" || err != nil {
		t.Error(project, kind, id, err)
	}
	for _, bad := range []string{"", "projects", "projects/p", "projects/p/routes", "projects/p/routes/", "projects//routes/a", "projects/p/routes/a/b", "x/p/routes/a", "projects/p/route/a", "projects/1/routes/a", "projects/p/routes/A", "projects/p/routes/-"} {
		if _, _, _, err := KindOf(bad); err == nil {
			t.Errorf("%q is a name", bad)
		}
	}
}

// FuzzValidate reads any bytes as an object of each kind: nothing panics, neither
// Normalize, Validate, Build nor Check, and Normalize is idempotent.
func FuzzValidate(f *testing.F) {
	for _, row := range badInput {
		json := strings.ReplaceAll(strings.ReplaceAll(row.json, `\"`, "\x00"), "'", `"`)
		b, err := proto.Marshal(ToResource(objectOf(f, row.kind, "x", strings.ReplaceAll(json, "\x00", `\"`))))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	g := objects(f, "gateway g {'listeners': [{'name': 'http', 'port': 80}]}")
	base := model.Build(nil, 1, Changes{Updates: g})
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &pb.Resource{}
		if proto.Unmarshal(data, r) != nil {
			return
		}
		o := FromResource(r)
		if o == nil {
			return
		}
		model.Normalize(o)
		again := proto.CloneOf(o)
		if model.Normalize(again); !proto.Equal(again, o) {
			t.Errorf("a second Normalize changes %v to %v", o, again)
		}
		model.Validate(o)
		s := model.Build(base, 2, Changes{Updates: []Object{o}})
		s.Check()
		s.Hosts("projects/p/gateways/g", "http")
	})
}
