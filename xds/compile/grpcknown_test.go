package compile_test

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestGRPCKnowsAll fails when something is added to the model that the view of gRPC clients
// does not know: it must either be obeyed by them, or be in cannotDo (grpcroute.go), so that
// they are shut out. Then it is added here. Policies shut them out by themselves.
func TestGRPCKnowsAll(t *testing.T) {
	for m, known := range map[proto.Message][]string{
		&pb.Forward{}:     {"backends", "host_rewrite", "prefix_rewrite"},
		&pb.RouteMatch{}:  {"path", "headers", "query", "methods"},
		&pb.PathMatch{}:   {"exact", "prefix", "text_prefix", "regex", "ignore_case"},
		&pb.HeaderMatch{}: {"name", "value", "invert"},
		&pb.StringMatch{}: {"exact", "prefix", "suffix", "regex", "present"},
		&pb.QueryMatch{}:  {"name", "value"},
		&pb.Backend{}:     {"name", "metadata", "static", "dns", "subsets", "protocol", "load_balancing", "connect_timeout", "status"},
	} {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if name := string(fields.Get(i).Name()); !slices.Contains(known, name) {
				t.Errorf("%s.%s: say what it is for gRPC clients without a proxy", m.ProtoReflect().Descriptor().Name(), name)
			}
		}
	}
}
