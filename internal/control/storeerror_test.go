package control

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/penstock-gateway/penstock/store"
)

// TestNoSpace: a client learns that the store is full, which another try alone does not mend.
func TestNoSpace(t *testing.T) {
	err := commitError(fmt.Errorf("store: %w; free space", &store.SpaceError{Dir: "/data", Free: 1 << 20, Need: 32 << 20}))
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	told := refusing(since, &store.SpaceError{Dir: "/data", Free: 1 << 20, Need: 32 << 20}).GetMessage()
	if want := "refusing writes: no space left for /data: its file system has 1 MiB free, 32 MiB are needed (since 2026-01-02T03:04:05Z); what is served stays"; told != want {
		t.Errorf("status: %s", told)
	}
	wantCode(t, "a full disk", err, codes.ResourceExhausted, "/data: its file system has 1 MiB free, 32 MiB are needed; free space")
}
