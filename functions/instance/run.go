package instance

import (
	"context"
	"maps"
	"syscall"

	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// Run runs a program of a sandbox to its end and then ends all that it has left, daemons
// too. When ctx ends it is killed. The error says how it ended when that was not with
// status 0, or why it could not be started.
func Run(ctx context.Context, plan *sandbox.Plan, c sandbox.Command) error {
	env := map[string]string{instanceVariable: c.ID}
	maps.Copy(env, c.Env)
	c.Env = env
	place, err := reserve(plan, c.ID)
	if err != nil {
		return err
	}
	p, err := place.startProcess(c)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { p.signal(syscall.SIGKILL) })
	<-p.done
	stop()
	p.release()
	return p.err
}
