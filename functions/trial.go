package functions

import (
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// trial is the first start of a version of a scaled function that never served. With
// no instance wanted nothing would be known of it before its first caller: a deployment
// that cannot start would look well, and the version before would be given up for it. So
// one instance is started when the version comes, and stays for as long as an idle one
// does. Whether a start after that fails is known from requests, and kept here, too. The
// manager's mu guards it.
type trial struct {
	// due: no instance was ready yet, and none has failed.
	due bool
	// warmUntil is until when the instance stays that was started for it.
	warmUntil time.Time
	// failure is why the last start failed; "" when none has failed since one was ready.
	failure string
}

// maxTrials bounds how many are tried at once, so that a deployment of many functions
// leaves room for what serves.
const maxTrials = 4

// wants is how many instances it wants.
func (t *trial) wants(now time.Time) int {
	if t.due || now.Before(t.warmUntil) {
		return 1
	}
	return 0
}

// ready notes that an instance is.
func (t *trial) ready(now time.Time, idle time.Duration) {
	if t.due {
		t.due, t.warmUntil = false, now.Add(idle)
	}
	t.failure = ""
}

// failed notes that a start failed.
func (t *trial) failed(why string) { t.due, t.failure = false, why }

// wants is how many instances a generation has that are to be there; nil has none.
func (g *generation) wants() int {
	if g == nil {
		return 0
	}
	return g.want
}

// tried begins an instance that is started to try its version; done is to be called
// when it is ready or has failed. ok is false when the slot is to end.
func (s *slot) tried() (done func(), ok bool) {
	s.g.m.mu.Lock()
	due := s.g.trial.due
	s.g.m.mu.Unlock()
	if !due {
		return func() {}, true
	}
	select {
	case s.g.m.trials <- struct{}{}:
		return func() { <-s.g.m.trials }, true
	case <-s.quit:
		return nil, false
	}
}

// deployed are the versions that a message names, by function.
func deployed(m *pb.ConnectResponse) map[string]*pb.DeployedVersion {
	out := map[string]*pb.DeployedVersion{}
	for _, v := range m.GetVersions() {
		out[v.GetFunction()] = v
	}
	return out
}
