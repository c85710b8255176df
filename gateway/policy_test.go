package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestMissing: every field of Policies has a policy; a list without one of them names it.
func TestMissing(t *testing.T) {
	if got := model.Missing(); got != nil {
		t.Errorf("no policy for %v: add it to gateway/policies", got)
	}
	got := NewModel(&Policy[*pb.RetryPolicy]{Name: "retry"}).Missing()
	if len(got) != len(model.policies)-1 || slices.Contains(got, "retry") || !slices.Contains(got, "timeout") {
		t.Errorf("missing beside retry: %v", got)
	}
}

// TestNewModelPanics: a list that cannot work does not start.
func TestNewModelPanics(t *testing.T) {
	retry := &Policy[*pb.RetryPolicy]{Name: "retry"}
	for want, list := range map[string][]AnyPolicy{
		`"retries" is not a message field of penstock.v1.Policies`:                   {&Policy[*pb.RetryPolicy]{Name: "retries"}},
		`"timeout" is a penstock.v1.RetryPolicy, but the field is a penstock.v1.Tim`: {&Policy[*pb.RetryPolicy]{Name: "timeout"}},
		`"retry" has one of Owns and Owning without the other`:                       {&Policy[*pb.RetryPolicy]{Name: "retry", Owns: func(*pb.RetryPolicy) []string { return nil }}},
		`"retry" is in the list twice`:                                               {retry, retry},
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			}()
			NewModel(list...)
		}()
	}
}

// TestPlaces: a policy that stands where it may not is refused, and says where it may.
func TestPlaces(t *testing.T) {
	m := NewModel(&Policy[*pb.RetryPolicy]{Name: "retry", Places: OnRoute | OnRule, Check: func(c *Check, p *pb.RetryPolicy) {
		c.Add("other", "is looked at")
	}})
	p := &pb.Policies{Retry: &pb.RetryPolicy{}}
	for _, c := range []struct {
		object Object
		want   string
	}{
		{&pb.Gateway{Name: "projects/p/gateways/g", Listeners: []*pb.Listener{{Name: "a", Port: 80}}, Policies: p}, "policies.retry: cannot stand on a gateway; move it to a route or a rule"},
		{&pb.Route{Name: "projects/p/routes/r", Rules: []*pb.RouteRule{{Policies: p, Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}}}}}, "rules[0].policies.retry.other: is looked at"},
	} {
		got := m.Validate(c.object)
		if len(got) != 1 || got[0].Field+": "+got[0].Message != c.want {
			t.Errorf("%v, want %s", got, c.want)
		}
	}
}

// TestUnion: what protects is never dropped by a nearer level, whatever it says; what two
// levels ask for alike is kept once, from the outer one. Levels of Sum are all kept.
func TestUnion(t *testing.T) {
	at := func(path, issuer string) Sourced[*pb.AuthenticationPolicy] {
		return Sourced[*pb.AuthenticationPolicy]{Source{nil, path}, &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{Issuer: issuer}}}
	}
	text := func(v Value[*pb.AuthenticationPolicy]) string {
		var out []string
		for _, l := range v.Levels {
			out = append(out, l.Source.Path+"="+l.Value.GetJwt().GetIssuer())
		}
		return strings.Join(out, " ")
	}
	levels := []Sourced[*pb.AuthenticationPolicy]{at("gateway", "a"), at("route", "b"), at("rule", "A"), at("rule", "b")}
	for want, p := range map[string]*Policy[*pb.AuthenticationPolicy]{
		"gateway=a route=b rule=A":        {Name: "authentication", Merge: Union},
		"gateway=a route=b rule=A rule=b": {Name: "authentication", Merge: Sum},
		"gateway=a route=b": {Name: "authentication", Merge: Union, Same: func(a, b Sourced[*pb.AuthenticationPolicy]) bool {
			return strings.EqualFold(a.Value.GetJwt().GetIssuer(), b.Value.GetJwt().GetIssuer())
		}},
	} {
		e := p.InForce(levels...)
		if got := text(p.Of(e)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		if e.Protected() != (p.Merge == Union) {
			t.Errorf("%s: protected %v", want, e.Protected())
		}
	}
}

// TestSaysNothing: a level with an empty policy is as one without it.
func TestSaysNothing(t *testing.T) {
	empty := &pb.Policies{}
	r := empty.ProtoReflect()
	for _, p := range model.policies {
		r.Set(p.field, r.NewField(p.field))
	}
	if e := model.merge(level{policies: empty}, level{policies: proto.CloneOf(empty)}); len(e.values) != 0 {
		t.Errorf("in force: %v", e.values)
	}
}

// TestOwnedHeaders: the headers that only a policy may set are those of all levels, and are
// known of an object that is lost.
func TestOwnedHeaders(t *testing.T) {
	token := func(headers ...string) *pb.Policies {
		j := &pb.JwtAuthentication{Issuer: "i"}
		for _, h := range headers {
			j.ClaimHeaders = append(j.ClaimHeaders, &pb.ClaimHeader{Claim: "sub", Header: h})
		}
		return &pb.Policies{Authentication: &pb.AuthenticationPolicy{Jwt: j}}
	}
	const name = "projects/p/routes/r"
	r := &pb.Route{Name: name, Hostnames: []string{"a.test"}, Policies: token("x-b"), Rules: []*pb.RouteRule{{Policies: token("x-a", "x-b")}, {}}}
	s := model.Build(nil, 1, Changes{Updates: []Object{r}})
	if got := s.OwnedHeaders(name); !slices.Equal(got, []string{"x-b", "x-a", "x-b"}) {
		t.Error(got)
	}
	foot := model.Footprint(&pb.Resource{Kind: &pb.Resource_Route{Route: r}})
	s = model.Build(s, 2, Changes{Damaged: []Damage{{Name: name, Footprint: foot}}})
	if got := s.DamagedHeaders("p"); !slices.Equal(got, []string{"x-a", "x-b"}) || !s.Damaged(name) {
		t.Error(got)
	}
	// The bytes are those that stores hold.
	want, err := proto.MarshalOptions{Deterministic: true}.Marshal(&pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{Hostnames: r.GetHostnames(), Policies: &pb.Policies{
		Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{ClaimHeaders: []*pb.ClaimHeader{{Header: "x-a"}, {Header: "x-b"}}}},
	}}}})
	if err != nil || string(foot) != string(want) {
		t.Errorf("%q, want %q: %v", foot, want, err)
	}
	if got := s.OwnedHeaders("projects/p/routes/none"); got != nil {
		t.Error(got)
	}
}
