package functions

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestInstalledIsTold: a function that waits until its runtime is installed says so; one
// whose runtime is there says nothing.
func TestInstalledIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &manager{logs: newLogbook()}
		m.logs.subscribe([]string{"f"})
		said := func(takes time.Duration) (out []string) {
			path, err := m.installed(t.Context(), &pb.Function{Name: "f"}, "the runtime", func(context.Context) (string, error) {
				time.Sleep(takes)
				return "/there", nil
			})
			if path != "/there" || err != nil {
				t.Errorf("%q, %v", path, err)
			}
			synctest.Wait()
			for _, l := range m.logs.take().GetLines() {
				out = append(out, l.GetText())
			}
			return out
		}
		if got := said(time.Millisecond); len(got) != 0 {
			t.Errorf("of what is there it says %q", got)
		}
		if got, want := said(time.Minute), []string{"it waits for the runtime, which is being installed, once for all functions of this machine", "the runtime is there, after 60.0 s"}; !slices.Equal(got, want) {
			t.Errorf("it says %q, want %q", got, want)
		}
	})
}
