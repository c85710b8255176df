package gateway

import (
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func TestVersionBefore(t *testing.T) {
	pinned := &pb.Function{Traffic: []*pb.Traffic{{Version: 5, Weight: 1}}}
	versions := func(served ...bool) []*pb.FunctionVersion {
		var out []*pb.FunctionVersion
		for i, s := range served {
			v := &pb.FunctionVersion{Number: int64(9 - 2*i)} // 9, 7, 5
			if s {
				v.FirstServeTime = timestamppb.Now()
			}
			out = append(out, v)
		}
		return out
	}
	for _, c := range []struct {
		what     string
		f        *pb.Function
		versions []*pb.FunctionVersion
		serving  int64
		want     int64
	}{
		{"the one between never served", nil, versions(true, false, true), 9, 5},
		{"all have served", nil, versions(true, true, true), 9, 7},
		{"the newest does not serve", nil, versions(false, true, true), 9, 7},
		{"nothing is known", nil, versions(false, false, false), 9, 7},
		{"an older one came again", nil, versions(true, true, true), 5, 9},
		{"an older one came again after one that never served", nil, versions(false, true, true), 5, 7},
		{"it was rolled back to the oldest", pinned, versions(true, true, true), 5, 0},
		{"none before has served", nil, versions(true, false, false), 9, 0},
		{"there is one", nil, versions(true), 9, 0},
	} {
		if got := VersionBefore(c.f, c.versions, c.serving); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}
