package instance

import (
	"os/exec"

	"github.com/penstock-gateway/penstock/functions/sandbox"
	"github.com/penstock-gateway/penstock/internal/launch"
)

// waiting is the family of processes that wait to become instances.
const waiting = "penstock-waiting"

// KeepReady has some processes wait in sandboxes of this machine for the programs of
// instances, so that a start is soon done. What it returns ends them.
func KeepReady(m *sandbox.Machine, most int) (end func()) {
	return m.KeepReady(most, func(cmd *exec.Cmd) error {
		return startFamily(waiting, func() (int, error) {
			if err := launch.Start(cmd); err != nil {
				return 0, err
			}
			return cmd.Process.Pid, nil
		})
	})
}
