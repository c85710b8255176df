package functions

import (
	"cmp"
	"fmt"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/activate"
	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/instance"
)

// A function that cannot be run answers all the same: with 503 and the reason, instead
// of what a proxy says that knows no endpoint. One that is scaled has an activator for
// it; any other one gets a listener for as long as nothing else of it serves.

// cannotStart is why a generation cannot be prepared; nil when it is not known to be so.
func (g *generation) cannotStart() *activate.Trouble {
	if g.problem == "" {
		return nil
	}
	return &activate.Trouble{Kind: activate.KindCannotStart, Text: fmt.Sprintf("function %s cannot be run: %s", g.function.name, g.problem)}
}

// crashes is why requests of a generation do not wait for the next start.
func (g *generation) crashes() *activate.Trouble {
	return &activate.Trouble{Kind: activate.KindCrashLoop, Text: fmt.Sprintf(
		"function %s: its instances have ended %d times in a row; %s", g.function.name, g.crash.count, g.crash.reason)}
}

// refusal is why no instance of the function serves, and none will soon; nil when one
// does, or may. The caller holds mu.
func (f *function) refusal() *activate.Trouble {
	for _, g := range f.generations {
		for _, s := range g.slots {
			if s.serves() {
				return nil
			}
		}
	}
	g := f.current()
	switch {
	case g == nil:
		return nil
	case g.problem != "":
		return g.cannotStart()
	case g.crash.count >= crashLoop:
		return g.crashes()
	}
	return nil
}

// apologize begins or ends to answer for a function that has no activator. The caller
// holds mu.
func (f *function) apologize() {
	trouble := f.refusal()
	if trouble == nil {
		f.forgive()
		return
	}
	g := f.current()
	if f.apology == nil {
		var err error
		f.apology, err = g.m.newActivator(f, g.spec, activate.Limits{MaxQueued: 1}, cmp.Or(int(g.spec.GetConcurrency()), 1), func() {})
		if err != nil {
			g.m.config.Logger.Error("callers are not told why a function cannot be run", "function", f.name, "error", err)
			return
		}
		f.apologizes = g.m
	}
	f.apology.Set(nil, trouble)
}

// forgive ends what apologize began. The caller holds mu.
func (f *function) forgive() {
	if f.apology != nil {
		f.close(f.apologizes, f.apology)
		f.apology = nil
	}
}

// newActivator makes a listener of a function for requests that have no instance.
func (m *manager) newActivator(f *function, w *pb.Function, limits activate.Limits, concurrency int, pressure func()) (*activate.Activator, error) {
	whole := int64(0)
	if contract.WholeBody(w) {
		whole = m.config.MaxEventBytes
	}
	return activate.New(activate.Options{
		Function: f.name, SocketDir: m.config.SocketDir, Receiver: instance.NewReceiver(whole, heldOptions(w, concurrency), heldBytes), Pressure: pressure,
		Arrived: f.meter.Arrived, Left: f.meter.left, Metrics: m.activation,
		Logger: m.config.Logger, Tracer: m.config.TracerProvider.Tracer("github.com/penstock-gateway/penstock/functions"),
	}, limits)
}
