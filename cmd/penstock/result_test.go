package main

import (
	"errors"
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestResultOfNobody: where no proxy is connected nothing of a write serves, the second time
// as the first.
func TestResultOfNobody(t *testing.T) {
	report := func(serving, total int32) *pb.WriteResult {
		return &pb.WriteResult{Serving: &pb.ServingReport{Serving: serving, Total: total}}
	}
	change := func(types ...pb.ChangeType) (out []*pb.Change) {
		for _, c := range types {
			out = append(out, &pb.Change{Type: c})
		}
		return out
	}
	const create, gone = pb.ChangeType_CHANGE_TYPE_CREATE, pb.ChangeType_CHANGE_TYPE_DELETE
	for what, c := range map[string]struct {
		result  *pb.WriteResult
		changes []*pb.Change
		red     bool
	}{
		"no proxy":                 {report(0, 0), change(create), true},
		"no proxy, and no change":  {report(0, 0), nil, true},
		"no proxy, only deletions": {report(0, 0), change(gone, gone), false},
		"no proxy, one deletion":   {report(0, 0), change(create, gone), true},
		"not waited for":           {&pb.WriteResult{}, change(create), false},
		"one of two":               {report(1, 2), change(create), true},
		"all":                      {report(2, 2), change(create), false},
	} {
		if err := resultError(c.result, c.changes); errors.Is(err, errNotServing) != c.red {
			t.Errorf("%s: %v", what, err)
		}
	}
}
