package compile

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestEntriesAreProved takes a good route and spoils it in every way that Envoy
// would acknowledge and ignore.
func TestEntriesAreProved(t *testing.T) {
	c := newHostCompiler("p", nil, nil)
	good := func() map[string]*anypb.Any { return c.opened() }
	if err := chain().check("p", good()); err != nil {
		t.Fatal(err)
	}
	wrong, err := anypb.New(&routev3.FilterConfig{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	for name := range good() {
		for spoil, f := range map[string]func(map[string]*anypb.Any){
			"forgotten":     func(m map[string]*anypb.Any) { delete(m, name) },
			"misspelt":      func(m map[string]*anypb.Any) { m[name+"x"] = m[name]; delete(m, name) },
			"also misspelt": func(m map[string]*anypb.Any) { m[strings.ToUpper(name)] = m[name] },
			"of wrong type": func(m map[string]*anypb.Any) { m[name] = wrong },
		} {
			m := good()
			f(m)
			if err := chain().check("p", m); err == nil || !strings.Contains(err.Error(), name) && !strings.Contains(err.Error(), strings.ToUpper(name)) {
				t.Errorf("%s %s: %v", name, spoil, err)
			}
		}
	}
	if err := chain().check("other", good()); err == nil {
		t.Error("entries for the filters of another project were taken")
	}
	m := good()
	upper := map[string]*anypb.Any{filterGuard: m[filterGuard]}
	delete(m, filterGuard)
	if err := chain().check("p", nil, upper, m); err != nil {
		t.Errorf("an entry of the level above: %v", err)
	}
	rc := &routev3.RouteConfiguration{VirtualHosts: []*routev3.VirtualHost{{Name: "h", Routes: []*routev3.Route{{Name: "r", TypedPerFilterConfig: m}}}}}
	if err := checkRoutes("p", rc); err == nil || !strings.Contains(err.Error(), "host h, route r") {
		t.Error(err)
	}
}

// TestChain: the order, and what is on by default, is what the security of the
// whole rests on.
func TestChain(t *testing.T) {
	p := &packer{}
	var got []string
	for _, f := range filters(p, "p", "p/g/l", gateway.EdgeOf(nil), true) {
		name := f.GetName()
		if f.GetDisabled() {
			name = "(" + name + ")"
		}
		got = append(got, name)
	}
	want := []string{
		"penstock.v1.trace", "penstock.v1.trace-flags", "penstock.v1.edge", "penstock.v1.fallback", "penstock.v1.on-demand", "penstock.v1.drop-port", "penstock.v1.cors", "penstock.v1.retry-on", "p/claims", "p/jwt", "penstock.v1.rbac",
		"penstock.v1.compression", "penstock.v1.guard", "penstock.v1.limit-open", "penstock.v1.limit-closed", "envoy.filters.http.router",
	}
	if !slices.Equal(got, want) || p.Err() != nil {
		t.Errorf("%v (%v), want %v", got, p.Err(), want)
	}
	types := map[string]bool{}
	for _, e := range chain().entries {
		types[e.NameIn("p")] = true
	}
	for _, f := range filters(p, "p", "p/g/l", gateway.EdgeOf(nil), true) {
		if f.GetIsOptional() {
			t.Errorf("%s is optional: an Envoy without it would serve without it", f.GetName())
		}
		for _, name := range []string{filterRBAC, filterGuard} {
			if f.GetName() != name {
				continue
			}
			m := &rbacv3.RBAC{}
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				t.Fatal(err)
			}
			if m.GetRules() == nil || len(m.GetRules().GetPolicies()) != 0 || m.GetRules().GetAction() != 0 {
				t.Errorf("%s does not deny by default", name)
			}
		}
		delete(types, f.GetName())
	}
	if len(types) != 0 {
		t.Errorf("entries for filters that are not in the chain: %v", types)
	}
	jwt := filters(p, "p", "p/g/l", gateway.EdgeOf(nil), true)[9].GetConfigDiscovery()
	if jwt.GetDefaultConfig() == nil || !jwt.GetApplyDefaultConfigWithoutWarming() || len(jwt.GetTypeUrls()) != 1 {
		t.Errorf("the jwt filter: %v", jwt)
	}
}

func TestAliases(t *testing.T) {
	long := "x-" + strings.Repeat("a-", 120) + "z"
	for _, c := range []struct {
		name, header string
		want         bool
	}{
		{"x-user-id", "x-user-id", true},
		{"x-user-id", "x.user.id", true},
		{"x-user-id", "x-user.id", true},
		{"x-user-id", "x!user~id", true},
		{"x-user-id", "x'user`id", true},
		{"x-user-id", "x_user|id", true},
		{"x-user-id", "xauser-id", false},
		{"x-user-id", "x1user-id", false},
		{"x-user-id", "xuserid", false},
		{"x-user-id", "x-user-id2", false},
		{"x-user-id", "ax-user-id", false},
		{"x-user-id", "x--user-id", false},
		{long, long, true},
		{long, strings.ReplaceAll(long, "-", "!"), true},
		{long, "x-a-b", false},
	} {
		got := regexp.MustCompile(`^(?:` + aliases(c.name) + `)$`).MatchString(c.header)
		if got != c.want {
			t.Errorf("%s: %s matches: %v", c.name, c.header, got)
		}
	}
	// Every character that HTTP lets stand in a name and is not a letter or digit.
	for _, c := range "!#$%&'*+-.^_`|~" {
		if !regexp.MustCompile(`^(?:` + aliases("x-a") + `)$`).MatchString("x" + string(c) + "a") {
			t.Errorf("%q is not taken for a dash", c)
		}
	}
}

func TestPathVariants(t *testing.T) {
	prefix := func(s string) *pb.PathMatch { return &pb.PathMatch{Match: &pb.PathMatch_Prefix{Prefix: s}} }
	for _, c := range []struct {
		match   *pb.PathMatch
		rewrite string
		want    []string // kind path -> rewrite
	}{
		{nil, "", []string{"prefix / -> "}},
		{nil, "/x", []string{"prefix / -> /x/"}},
		{prefix("/"), "/x/", []string{"prefix / -> /x/"}},
		{prefix("/a"), "", []string{"separated /a -> "}},
		{prefix("/a"), "/b", []string{"separated /a -> /b"}},
		{prefix("/a"), "/", []string{"path /a -> /", "prefix /a/ -> /"}},
		{prefix("/a"), "/b/", []string{"path /a -> /b/", "prefix /a/ -> /b/"}},
		{prefix("/a/"), "/b", []string{"prefix /a/ -> /b/"}},
		{&pb.PathMatch{Match: &pb.PathMatch_Exact{Exact: "/a"}}, "/b", []string{"path /a -> /b"}},
		{&pb.PathMatch{Match: &pb.PathMatch_TextPrefix{TextPrefix: "/a"}}, "/b", []string{"prefix /a -> /b"}},
		{&pb.PathMatch{Match: &pb.PathMatch_Regex{Regex: "/a+"}}, "/b", []string{"regex /a+ -> /b"}},
	} {
		var got []string
		for _, v := range pathVariants(c.match, c.rewrite) {
			m := v.match
			switch m.GetPathSpecifier().(type) {
			case *routev3.RouteMatch_Prefix:
				got = append(got, "prefix "+m.GetPrefix()+" -> "+v.rewrite)
			case *routev3.RouteMatch_Path:
				got = append(got, "path "+m.GetPath()+" -> "+v.rewrite)
			case *routev3.RouteMatch_PathSeparatedPrefix:
				got = append(got, "separated "+m.GetPathSeparatedPrefix()+" -> "+v.rewrite)
			case *routev3.RouteMatch_SafeRegex:
				got = append(got, "regex "+m.GetSafeRegex().GetRegex()+" -> "+v.rewrite)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v to %q: %v, want %v", c.match, c.rewrite, got, c.want)
		}
	}
}
