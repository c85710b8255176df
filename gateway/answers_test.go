package gateway

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite docs/answers.md")

// TestAnswersDocument: docs/answers.md lists each answer once; -update rewrites it.
func TestAnswersDocument(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# What the gateway answers by itself

Such an answer is a problem (RFC 9457, ` + "`application/problem+json`" + `) with a ` + "`code`" + ` that programs can compare; a code never
changes its meaning. To a gRPC client the refusals of the edge come as the message beside the status. The answers of
backends and of ` + "`direct_response`" + ` are passed on as they are; a limit answers 429 with a problem of its own and the
` + "`RateLimit`" + ` headers. ` + "`penstock explain`" + ` names the same codes.

| code | status | meaning |
|---|---|---|
`)
	seen := map[string]bool{}
	for _, a := range Answers() {
		if seen[a.Code] {
			t.Errorf("duplicate code %s", a.Code)
		}
		seen[a.Code] = true
		status := fmt.Sprint(a.Status)
		if a.Status == 0 {
			status = "any"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.Code, status, a.Detail)
	}
	b.WriteString(`
Over HTTP/2 what is not valid HTTP (a line break in a header, a blank in ` + "`:path`" + `), more than 500 header lines beyond
` + "`edge.max_headers`" + `, and more than 64 KiB beyond ` + "`edge.max_headers_kib`" + ` reset the stream: Envoy has no answer for these.
`)
	const file = "../docs/answers.md"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != b.String() {
		t.Errorf("%s is not as the table: run go test ./gateway -run Answers -update (%v)", file, err)
	}
}
