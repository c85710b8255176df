package functions

import (
	"testing"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// TestUnlistWhileStateIsTaken: what leaves while a state is being taken is in it; no
// other state follows, and none is acknowledged again.
func TestUnlistWhileStateIsTaken(t *testing.T) {
	m := &manager{}
	u := &m.unlisting
	u.begin()
	var left <-chan struct{}
	_, fresh := u.state(func() *pb.RunnerState { left = m.unlist(); return &pb.RunnerState{} })
	u.told(fresh, 1)
	u.acknowledged(1)
	_, fresh = u.state(func() *pb.RunnerState { return &pb.RunnerState{} })
	u.told(fresh, 1) // equal to the one before: not sent
	select {
	case <-left:
	default:
		t.Error("it waits for an acknowledgement that does not come")
	}
	// On another stream nothing is acknowledged yet.
	u.begin()
	left = m.unlist()
	_, fresh = u.state(func() *pb.RunnerState { return &pb.RunnerState{} })
	u.told(fresh, 1)
	select {
	case <-left:
		t.Error("an acknowledgement of another stream counts")
	default:
	}
	u.acknowledged(1)
	<-left
}
