package control

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestLogsSince: with a time, only what was printed since is shown, and all of it.
func TestLogsSince(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	p.mustPut(t, function("1"))
	runner, _ := connectRunner(t, p, dir+"/pki", runnerIdentity+"a", "a")
	until(t, "the runner to be connected", func() bool { return len(p.core.runners.connected()) == 1 })
	const lines = 150 // more than are shown when nothing is said
	now := time.Now()
	reader, err := pb.NewFunctionOperationsServiceClient(p.conn).StreamLogs(t.Context(), &pb.StreamLogsRequest{
		Name: testFunction, Since: timestamppb.New(now.Add(-10 * time.Minute)),
	})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := runner.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(m.GetLogs().GetFunctions()) == 1 {
			break
		}
	}
	kept := &pb.RunnerLogs{}
	add := func(at time.Time, text string) {
		kept.Lines = append(kept.Lines, &pb.LogLine{Function: testFunction, Instance: "i", Text: text, Time: timestamppb.New(at), Sequence: uint64(len(kept.Lines) + 1)})
	}
	add(now.Add(-time.Hour), "old")
	for i := range lines {
		add(now.Add(-time.Minute), fmt.Sprint(i))
	}
	if err := runner.Send(&pb.ConnectRequest{Message: &pb.ConnectRequest_Logs{Logs: kept}}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		m, err := reader.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range m.GetLines() {
			got = append(got, l.GetText())
		}
	}
	if len(got) != lines || got[0] != "0" || got[lines-1] != fmt.Sprint(lines-1) {
		t.Errorf("%d lines, want %d: %.100v", len(got), lines, got)
	}
}
