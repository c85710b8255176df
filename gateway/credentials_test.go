package gateway

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestResemblesCredential: credentials by their name or their form, and what only looks
// a little like one.
func TestResemblesCredential(t *testing.T) {
	for _, c := range []struct {
		name, value string
		want        bool
	}{
		{"DB_PASSWORD", "hunter2", true}, {"PASSWD", "x", true}, {"API_KEY", "abc", true}, {"apikey", "abc", true}, {"STRIPE_SECRET", "x", true},
		{"AWS_SECRET_ACCESS_KEY", "x", true}, {"GITHUB_TOKEN", "x", true}, {"authorization", "x", true}, {"x-api-key", "k", true}, {"x-auth-token", "k", true},
		{"cookie", "session=1", true}, {"X", "Bearer abcdefgh", true}, {"X", "Basic dXNlcjpwYXNz", true}, {"DB_URL", "postgres://app:pw@db/shop", true},
		{"X", "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.x", true}, {"X", "AKIAIOSFODNN7EXAMPLE", true}, {"X", "-----BEGIN EC PRIVATE KEY-----", true},
		{"X", "ghp_abcdefghijklmnopqrstuvwxyz0123456789", true}, {"X", "sk_live_abcdefghijklmnopqrst", true},

		{"SHOP", "kettles", false}, {"MONKEY", "banana", false}, {"TOKENIZER", "bert", false}, {"MAX_TOKENS", "100", false}, {"TOKEN_COUNT", "7", false},
		{"PASSWORD_FILE", "/run/x", false}, {"TOKEN", "/run/token", false}, {"SECRET", "", false}, {"SECRET", "${X}", false}, {"USE_TOKEN", "true", false},
		{"DB_URL", "postgres://db/shop", false}, {"URL", "https://a.example:8443/x", false}, {"x-request-source", "gateway", false}, {"cache-control", "no-store", false},
	} {
		if got := resemblesCredential(c.name, c.value); got != c.want {
			t.Errorf("%s=%s: %v", c.name, c.value, got)
		}
	}
}

// TestCredentialWarnings: what looks like a credential is warned of wherever headers and
// variables stand, without its value.
func TestCredentialWarnings(t *testing.T) {
	const canary = "Bearer canary-4711"
	policies := &pb.Policies{Headers: &pb.HeadersPolicy{
		Request:  &pb.HeaderChange{Set: []*pb.Header{{Name: "x-source", Value: "gateway"}, {Name: "authorization", Value: canary}}},
		Response: &pb.HeaderChange{Add: []*pb.Header{{Name: "x-other", Value: canary}}},
	}}
	for _, c := range []struct {
		o    Object
		want []string
	}{
		{&pb.Gateway{Name: "projects/p/gateways/g", Policies: policies}, []string{"policies.headers.request.set[1]", "policies.headers.response.add[0]"}},
		{&pb.Route{Name: "projects/p/routes/r", Policies: policies, Rules: []*pb.RouteRule{{}, {Policies: policies}}}, []string{
			"policies.headers.request.set[1]", "policies.headers.response.add[0]", "rules[1].policies.headers.request.set[1]", "rules[1].policies.headers.response.add[0]"}},
		{&pb.Function{Name: "projects/p/functions/f", Env: map[string]string{"A": "b", "DB_PASSWORD": canary}, Contract: &pb.Function_Server{Server: &pb.ServerContract{
			Command: []string{"./server", "--db", "postgres://a:" + strings.Fields(canary)[1] + "@db/x"}}}}, []string{`env["DB_PASSWORD"]`, "server.command[2]"}},
		{&pb.Secret{Name: "projects/p/secrets/s", Data: map[string]string{"password": canary}}, nil},
	} {
		var got []string
		for _, w := range model.Warnings(c.o) {
			got = append(got, w.Field)
			if strings.Contains(w.Message, "canary") {
				t.Errorf("the warning shows the value: %s", w.Message)
			}
		}
		slices.Sort(got)
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: warnings of %v, want %v", c.o.GetName(), got, c.want)
		}
	}
}
