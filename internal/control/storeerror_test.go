package control

import (
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/penstock-gateway/penstock/store"
)

// TestNoSpace: a client learns that the store is full, which another try alone does not mend.
func TestNoSpace(t *testing.T) {
	err := commitError(fmt.Errorf("store: %w; free space", &store.SpaceError{Dir: "/data", Free: 1 << 20, Need: 32 << 20}))
	wantCode(t, "a full disk", err, codes.ResourceExhausted, "/data: its file system has 1 MiB free, 32 MiB are needed; free space")
}
