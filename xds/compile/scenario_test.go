package compile_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/penstock-gateway/penstock/gateway/explain"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// scenarios are the files testdata/*.txtar of the policies, each with these sections:
// in.yaml, the objects, with PORT, UPSTREAM and JWKS to be filled in; want/<type>/<name>, the
// resources that TestGolden compares; and requests, which TestScenarios sends to a real Envoy
// and explains. A request is lines, with a blank line after it:
//
//	# what it shows
//	> GET shop.test/a        method and URL, with "Bearer TOKEN" for a good token
//	> origin: https://a.test further lines are headers
//	< 200                    the status
//	< name: value            a header of the response; "name: a | b" for several lines,
//	                         "name:" for none
//	< upstream               the request reached the backend; "not upstream": it did not
//	? text                   explain says it, in the outcome or a row
func scenarios(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{"../../gateway/policy/*/testdata/*.txtar", "../../authn/*/testdata/*.txtar"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, files...)
	}
	return out
}

// filledIn is what stands for the parts of a rig where no proxy runs.
var filledIn = strings.NewReplacer("PORT", "8080", "UPSTREAM", "{endpoints: [{address: 127.0.0.1, port: 9001}]}",
	"JWKS", `'{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"one","x":"siQmanHyVjeh2HFBD6uDZ7LliQGrwEXTETiVNl_bsCE","y":"v2T5m84OdARVBGNp7LJF80gbfNZ3xs2KF-JC6SdDMjA"}]}'`)

func section(t *testing.T, a *txtar.Archive, name string) string {
	t.Helper()
	i := slices.IndexFunc(a.Files, func(f txtar.File) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no section %s", name)
	}
	return string(a.Files[i].Data)
}

// TestScenarios sends the requests of all policies to a real Envoy, and asks explain about
// each, which must foresee the status.
func TestScenarios(t *testing.T) {
	r := newRig(t)
	for _, file := range scenarios(t) {
		t.Run(strings.TrimPrefix(file, "../../"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			a := txtar.Parse(b)
			port := r.serve(t, section(t, a, "in.yaml"))
			for block := range strings.SplitSeq(strings.TrimSpace(section(t, a, "requests")), "\n\n") {
				r.step(t, port, block)
			}
		})
	}
}

// step sends one request and compares what comes back.
func (r *rig) step(t *testing.T, port int, block string) {
	t.Helper()
	var sent, want, says []string
	title := ""
	for line := range strings.SplitSeq(block, "\n") {
		mark, rest, _ := strings.Cut(line, " ")
		switch mark {
		case "#":
			title = rest
		case ">":
			sent = append(sent, strings.ReplaceAll(rest, "Bearer TOKEN", "Bearer "+r.token(t, nil)))
		case "<":
			want = append(want, rest)
		case "?":
			says = append(says, rest)
		default:
			t.Fatalf("%s: %q is not a line of a request", title, line)
		}
	}
	if title == "" || len(sent) == 0 || len(want) == 0 {
		t.Fatalf("not a request with a title and an answer:\n%s", block)
	}
	method, url, _ := strings.Cut(sent[0], " ")
	got := r.do(t, port, method, url, sent[1:]...)
	for _, w := range want {
		if miss := got.lacks(w); miss != "" {
			t.Errorf("%s: %s", title, miss)
		}
	}
	host, path, _ := strings.Cut(url, "/")
	x := explain.Explain(r.snapshot, &pb.ExplainRequest{Method: method, Url: fmt.Sprintf("http://%s:%d/%s", host, port, path), HeaderLines: append(sent[1:], "host: "+host)}, nil)
	if x.GetOutcome().GetStatus() != uint32(got.status) {
		t.Errorf("%s: explain foresees %d, %s; it was %d", title, x.GetOutcome().GetStatus(), x.GetOutcome().GetText(), got.status)
	}
	told := x.GetOutcome().GetText()
	for _, p := range x.GetPolicies() {
		told += "\n" + p.GetPolicy() + ": " + p.GetSummary()
	}
	for _, s := range says {
		if !strings.Contains(told, s) {
			t.Errorf("%s: explain does not say %q:\n%s", title, s, told)
		}
	}
}

// lacks says how an answer differs from a line of what is wanted; "" when it does not.
func (a answer) lacks(want string) string {
	name, value, header := strings.Cut(want, ":")
	switch {
	case header:
		if got := strings.Join(a.header.Values(name), " | "); got != strings.TrimSpace(value) {
			return fmt.Sprintf("header %s is %q, want %q", name, got, strings.TrimSpace(value))
		}
	case want == "upstream" || want == "not upstream":
		if (a.got != nil) != (want == "upstream") {
			return fmt.Sprintf("reached the backend: %v, want %s", a.got != nil, want)
		}
	case want != fmt.Sprint(a.status):
		return fmt.Sprintf("status %d, want %s: %s", a.status, want, a.body)
	}
	return ""
}
