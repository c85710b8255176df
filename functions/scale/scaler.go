package scale

import (
	"slices"
	"strings"
)

func joinSorted(names []string) string {
	slices.Sort(names)
	return strings.Join(names, " and ")
}

// Scaler decides for one function. It has no clock of its own: time is what the
// observations say. It is not safe for concurrent use.
type Scaler struct {
	config Config
}

// New makes a scaler that knows nothing yet.
func New(c Config) *Scaler { return &Scaler{config: c.withDefaults()} }

// Decide returns how many instances are wanted. It is meant to be called every 250
// ms and whenever a request has to wait.
func (s *Scaler) Decide(o Observation) Decision {
	need := (o.InFlight + o.Queued + s.config.Concurrency - 1) / s.config.Concurrency
	if o.Now.Sub(o.LastRequest) < s.config.IdleTimeout {
		need = max(need, 1)
	}
	need = max(need, o.Starting)
	return Decision{
		Time: o.Now, Ready: o.Ready, Starting: o.Starting, Reason: ReasonConcurrency,
		Wanted: min(max(need, s.config.Min), s.config.Max),
	}
}
