package compression_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/gateway/source/file"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var gzip = []pb.CompressionAlgorithm{pb.CompressionAlgorithm_COMPRESSION_ALGORITHM_GZIP}

// TestInput: each mistake is told with its field and how to mend it, and what may not be
// meant is warned of.
func TestInput(t *testing.T) {
	for _, c := range []struct {
		policy     *pb.CompressionPolicy
		want, warn string // "" for none
	}{
		{policy: &pb.CompressionPolicy{Algorithms: gzip}},
		{policy: &pb.CompressionPolicy{Disabled: true}},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"Application/JSON", "application/vnd.a+json"}, MinLength: proto.Uint32(30)}},
		{policy: &pb.CompressionPolicy{}, want: "algorithms: is empty; name GZIP, BROTLI or ZSTD"},
		{policy: &pb.CompressionPolicy{MinLength: proto.Uint32(100)}, want: "algorithms: is empty"},
		{policy: &pb.CompressionPolicy{Algorithms: append(gzip, 0)}, want: "algorithms[1]"},
		{policy: &pb.CompressionPolicy{Algorithms: append(gzip, gzip...)}, want: "algorithms"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, Disabled: true}, want: "disabled: switches compression off, but other fields"},
		{policy: &pb.CompressionPolicy{MinLength: proto.Uint32(100), Disabled: true}, want: "disabled: switches compression off"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"*/*"}}, want: "content_types[0]"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"json"}}, want: "content_types[0]"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"text/html; charset=utf-8"}}, want: "content_types[0]"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"application/grpc-web"}}, want: "content_types[0]: \"application/grpc-web\" has a compression of its own"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, MinLength: proto.Uint32(1)}, want: "min_length"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"image/*"}}, warn: "is compressed already"},
		{policy: &pb.CompressionPolicy{Algorithms: gzip, ContentTypes: []string{"text/event-stream"}}, warn: "each event of a stream"},
	} {
		r := &pb.Route{Name: "projects/p/routes/r", Policies: &pb.Policies{Compression: c.policy}, Rules: []*pb.RouteRule{{
			Action: &pb.RouteRule_DirectResponse{DirectResponse: &pb.DirectResponse{Status: 200}},
		}}}
		policies.Model().Normalize(r)
		var got, warned []string
		for _, p := range policies.Model().Validate(r) {
			got = append(got, strings.TrimPrefix(p.Field, "policies.compression.")+": "+p.Message)
		}
		for _, p := range policies.Model().Warnings(r) {
			warned = append(warned, p.Message)
		}
		if c.want == "" && got != nil || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("%v: %q, want %q", c.policy, got, c.want)
		}
		if got == nil && (c.warn == "" && warned != nil || c.warn != "" && (len(warned) != 1 || !strings.Contains(warned[0], c.warn))) {
			t.Errorf("%v: warned of %q, want %q", c.policy, warned, c.warn)
		}
	}
}

// TestPage: the example of the page is valid, and nothing of it is warned of.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/compression.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	example, _, found := strings.Cut(rest, "```")
	objects, errs := file.Decode("compression.md", []byte(example))
	if !found || len(errs) > 0 || len(objects) != 1 {
		t.Fatal(errs, len(objects))
	}
	policies.Model().Normalize(objects[0])
	if got := slices.Concat(policies.Model().Validate(objects[0]), policies.Model().Warnings(objects[0])); got != nil {
		t.Error(got)
	}
}
