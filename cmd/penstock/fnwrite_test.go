package main

import (
	"testing"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestSplit: what a deployment leaves to the other versions stays where it is.
func TestSplit(t *testing.T) {
	back := &pb.Function{Traffic: []*pb.Traffic{{Version: 2, Weight: 100}}}
	marked := &pb.Function{Traffic: back.GetTraffic(), Metadata: &pb.Metadata{Annotations: map[string]string{gateway.RolledBackAnnotation: "x"}}}
	canary := &pb.Function{Traffic: []*pb.Traffic{{Version: 2, Weight: 90}, {Weight: 10, Tag: "canary"}}}
	for _, test := range []struct {
		name  string
		flags splitFlags
		said  bool
		old   *pb.Function
		want  string
	}{
		{"all", splitFlags{percent: 100}, false, back, "newest 100%"},
		{"the first", splitFlags{percent: 10}, false, &pb.Function{}, "3 90%, newest 10%"},
		{"a share", splitFlags{percent: 10}, true, back, "2 90%, newest 10%"},
		{"of a canary", splitFlags{percent: 50}, true, canary, "2 45%, 3 5%, newest 50%"},
		{"none", splitFlags{percent: 100, noTraffic: true}, false, back, "2 100%"},
		{"a tag after a rollback", splitFlags{percent: 100, tag: "next"}, false, marked, "2 100%, newest 0% (next)"},
		{"a tag for all", splitFlags{percent: 100, tag: "next"}, true, marked, "newest 100% (next)"},
		{"said after a rollback", splitFlags{percent: 100}, true, marked, "newest 100%"},
	} {
		test.flags.said = func() bool { return test.said }
		got, err := test.flags.traffic(test.old, 3)
		if text := trafficText(&pb.Function{Traffic: got}); err != nil || text != test.want {
			t.Errorf("%s: %s, %v; want %s", test.name, text, err, test.want)
		}
		if explicit := len(got) > 0; test.name == "said after a rollback" && !explicit {
			t.Errorf("%s: nothing is said to the control plane, which would keep the rollback", test.name)
		}
	}
}
