package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
)

// TestDescribeError: no code of gRPC, and nothing of how grpc-go prints one, is in what
// a person reads.
func TestDescribeError(t *testing.T) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		for _, err := range []error{
			status.Error(code, "routes/x is strange"),
			fmt.Errorf("the first try: %w", status.Error(code, "routes/x is strange")),
			errors.Join(errors.New("one"), status.Error(code, "routes/x is strange")),
			fmt.Errorf("the second try: %v", status.Error(code, "routes/x is strange")), //nolint:errorlint // one that nothing can unwrap
		} {
			got := describeError(err)
			if strings.Contains(got, "rpc error") || strings.Contains(got, "desc =") || code != codes.Unknown && strings.Contains(got, code.String()) {
				t.Errorf("%v is described as %q", err, got)
			}
			if code != codes.DeadlineExceeded && code != codes.Canceled && !strings.Contains(got, "routes/x is strange") {
				t.Errorf("%v is described as %q, without what it says", err, got)
			}
		}
	}
	if got := describeError(status.Error(codes.NotFound, "routes/x does not exist")); got != "routes/x does not exist" {
		t.Error(got)
	}
}

// TestDescribeNoServer is what grpc-go says of a server that is not there.
func TestDescribeNoServer(t *testing.T) {
	address := porttest.Address(t)
	for target, want := range map[string]string{
		address:                              "connect: connection refused",
		"unix:" + t.TempDir() + "/none.sock": "no such file or directory",
	} {
		conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = pb.NewConfigServiceClient(conn).ListRevisions(t.Context(), &pb.ListRevisionsRequest{})
		conn.Close()
		got := describeError(err)
		if !strings.HasPrefix(got, "the control plane does not answer (") || !strings.Contains(got, want) || strings.Contains(got, "transport:") || strings.Contains(got, "desc =") {
			t.Errorf("%s: %q, want %q", target, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	pip := "pip failed (exit status 1):\n    Looking in indexes: https://example.com\n    ERROR: Could not find a version that satisfies the requirement nonsense\n    ERROR: No matching distribution found for nonsense\n    [notice] A new release of pip is available\n"
	for text, want := range map[string]string{
		"":                      "",
		"one line":              "one line",
		"  one line \n\n":       "one line",
		pip:                     "pip failed (exit status 1): … ERROR: No matching distribution found for nonsense",
		"first:\nsecond\nthird": "first: … third",
		"it ended: exit status 1; last output:\n[ERROR] x\ny": "it ended: exit status 1: … [ERROR] x",
		"it ended: bad x; last output:\n[ERROR] bad x\ny":     "it ended: bad x",
		"build failed:\n[ERROR] x\ny":                         "build failed: … [ERROR] x",
		"error: one\nand more":                                "error: one",
		strings.Repeat("é", 2*maxReason):                      strings.Repeat("é", maxReason) + "…",
	} {
		if got := shorten(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestProblemText(t *testing.T) {
	for want, p := range map[string]*pb.ProxyProblem{
		"edge-1: refused Listener default/edge/http (from projects/default/gateways/edge): no such filter; at all": {Proxy: "edge-1", State: "refused", Type: "Listener",
			Resource: "default/edge/http", Object: "projects/default/gateways/edge", Detail: "no such filter\nat all\n"},
		"edge-1: pending: the revision is not compiled yet": {Proxy: "edge-1", State: "pending", Detail: "the revision is not compiled yet"},
		"functions/x cannot run: 0 of 1 instances ready: … ERROR: no; more: penstock fn describe x": {Proxy: "runner", State: "failing", Object: "projects/default/functions/x",
			Detail: "0 of 1 instances ready:\nlong\nERROR: no"},
		"projects/shop/functions/x cannot run: a: … b; more: penstock fn describe x --project shop": {Proxy: "runner", State: "no-runner", Object: "projects/shop/functions/x", Detail: "a\nb"},
		"functions/x is starting: 0 of 1 instances ready":                                           {Proxy: "runner", State: "starting", Object: "projects/default/functions/x", Detail: "0 of 1 instances ready"},
	} {
		if got := problemText(p); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := objectProblem(&pb.ObjectProblem{Object: "projects/default/routes/x", Field: "rules[0]", Message: "bad\nworse"}); got != "routes/x: rules[0]: bad: … worse; more: penstock get routes/x" {
		t.Error(got)
	}
}

// TestResponseFlags: all flags that this version of Envoy has are put into words.
func TestResponseFlags(t *testing.T) {
	err := (&accesslog.ResponseFlagFilter{Flags: []string{"?"}}).Validate()
	list := regexp.MustCompile(`in list \[([A-Z ]+)\]`).FindStringSubmatch(fmt.Sprint(err))
	if list == nil {
		t.Fatalf("no list of flags in %v", err)
	}
	flags := strings.Fields(list[1])
	for _, f := range flags {
		if responseFlags[f] == "" {
			t.Errorf("%s has no words", f)
		}
	}
	if len(flags) != len(responseFlags) || len(flags) < 30 {
		t.Errorf("Envoy has %d flags, and %d have words", len(flags), len(responseFlags))
	}
	if got := flagWords("URX,UF"); got != "no try is left; the connection to the endpoint failed" {
		t.Error(got)
	}
	s := &span{Tags: []tag{{"response_flags", "UH"}, {"error", "true"}, {"error", true}, {"upstream_address", "10.0.0.1:80"}}}
	if got := tags(s); got != "  [response_flags=UH (no healthy endpoint) endpoint=10.0.0.1:80 error=true]" {
		t.Error(got)
	}
}

// testWaitForNothing waits for what does not exist, and for what does not come.
func testWaitForNothing(t *testing.T, in *installation) {
	for args, want := range map[string]string{
		"wait 999":     "error: revision 999 does not exist; the newest is ",
		"wait x":       `"x" is not the number of a revision`,
		"wait 0":       `"0" is not the number of a revision`,
		"rollback 999": "revision: 999 does not exist or is no longer kept",
		"get route zz": "error: projects/default/routes/zz does not exist",
		"diff 998 999": "998",
		"fn logs zz":   "error: projects/default/functions/zz does not exist",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := penstock(ctx, append(strings.Fields(args), "--server", in.flags.api)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) || regexp.MustCompile(`NotFound|DeadlineExceeded|OutOfRange|rpc error`).Match(out) {
			t.Errorf("%s: %v, want %q\n%s", args, err, want, out)
		}
	}
}
