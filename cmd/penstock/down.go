package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/launch"
)

func newDownCommand() *cobra.Command {
	var dataDir string
	var timeout time.Duration
	c := &cobra.Command{
		Use:     "down",
		Short:   "Stop the `penstock up` of a data folder and all its processes",
		Long:    "Returns when every process is gone. What is kept in the data folder stays.",
		Example: "  penstock down\n  penstock down --data-dir ./.penstock --timeout 10s",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// Without a guess at what runs elsewhere: this stops things.
			return runDown(cmd.OutOrStdout(), dataDir, timeout)
		},
	}
	c.Flags().StringVar(&dataDir, "data-dir", "./.penstock", "data folder of the \"penstock up\" to stop")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "after this time what still runs is killed")
	return c
}

func runDown(w io.Writer, dataDir string, timeout time.Duration) error {
	dataDir, err := filepath.Abs(dataDir)
	if err != nil {
		return err
	}
	s, err := readState(dataDir)
	if err != nil {
		return err
	}
	if s == nil {
		fmt.Fprintf(w, "no `penstock up` runs on %s\n", dataDir)
		return nil
	}
	// What is recorded, and on top of it what those started: instances of
	// functions, compilers.
	ids := []launch.ID{s.ID}
	for _, p := range s.Processes {
		ids = append(ids, p.ID)
	}
	running := s.ID.Alive()
	if running {
		ids = append(ids, launch.Descendants(s.ID.PID)...)
	}
	if err := s.ID.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop process %d: %w", s.ID.PID, err)
	}
	wait := timeout
	if !running {
		wait = 0
	}
	left := launch.WaitGone(ids, wait)
	for _, id := range left {
		if err := id.Signal(syscall.SIGKILL); err != nil {
			return fmt.Errorf("kill process %d: %w", id.PID, err)
		}
	}
	if still := launch.WaitGone(left, 10*time.Second); len(still) > 0 {
		return fmt.Errorf("processes %v do not end, not even killed", pids(still))
	}
	_ = os.Remove(stateFile(dataDir))
	switch {
	case running && len(left) > 0:
		return fmt.Errorf("processes %v did not stop within %s and were killed", pids(left), timeout)
	case running:
		fmt.Fprintf(w, "stopped: process %d and all that it had started are gone\n", s.ID.PID)
	default:
		fmt.Fprintf(w, "no `penstock up` runs on %s (the last one, process %d, had not stopped in order)\n", dataDir, s.ID.PID)
	}
	return nil
}

func pids(ids []launch.ID) []int {
	var out []int
	for _, id := range ids {
		out = append(out, id.PID)
	}
	return out
}
