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
backends and of ` + "`direct_response`" + ` are passed on as they are; that of a limit names the limits, too
(` + "`violated-policies`" + `), and has the ` + "`RateLimit`" + ` headers. ` + "`penstock explain`" + ` names the same codes.

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

## What the runner answers in place of a function

Of the same form, with the ` + "`request_id`" + ` that is in the function's log, too. The code is ` + "`PK-FUNCTION-`" + ` and what the header
` + "`x-penstock-error`" + ` (or ` + "`x-penstock-refused`" + `: not begun, so proxies try another instance) holds. The answer to a handler
that raises an error has no code: its body is that of the function's contract.

| code | status | meaning |
|---|---|---|
| ` + "`PK-FUNCTION-BAD-REQUEST`" + ` | 400 | The request is not one that the function's contract can take. |
| ` + "`PK-FUNCTION-SLOW-BODY`" + ` | 408 | The request's body did not come in time. |
| ` + "`PK-FUNCTION-TOO-LARGE`" + ` | 413, 502 | The request's body (413) or the answer (502) is larger than the contract allows. |
| ` + "`PK-FUNCTION-BAD-RESPONSE`" + ` | 502 | The answer is not what the contract asks for. |
| ` + "`PK-FUNCTION-DIED`" + ` | 502 | The instance ended while it handled the request. |
| ` + "`PK-FUNCTION-DEADLINE`" + ` | 504 | The response did not begin within the function's timeout. |
| ` + "`PK-FUNCTION-TIMEOUT`" + ` | 504 | The response did not begin within the route's ` + "`timeout.request`" + `. |
| ` + "`PK-FUNCTION-CRASH-LOOP`" + ` | 503 | Instances end again and again before they are ready. |
| ` + "`PK-FUNCTION-CANNOT-START`" + ` | 503 | The function cannot be prepared: source, package, build or dependencies. |
| ` + "`PK-FUNCTION-QUEUE-FULL`" + ` | 503 | As many requests wait for an instance as may. |
| ` + "`PK-FUNCTION-QUEUE-TIMEOUT`" + ` | 503 | The request waited for an instance for as long as it may. |
| ` + "`PK-FUNCTION-STOPPING`" + ` | 503 | The instance or its runner is being stopped. |
| ` + "`PK-FUNCTION-DEAD`" + ` | 503 | The instance had ended. |
| ` + "`PK-FUNCTION-ENDED-BEFORE-READING`" + ` | 503 | The instance ended before it had read the request. |
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
