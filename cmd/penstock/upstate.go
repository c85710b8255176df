package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/penstock-gateway/penstock/internal/flock"
	"github.com/penstock-gateway/penstock/internal/keyfile"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/supervise"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

// upState is what a running `penstock up` tells others, in DATA-DIR/run/state.json.
type upState struct {
	launch.ID
	Version   string      `json:"version"`
	StartedAt time.Time   `json:"started_at"`
	Ready     bool        `json:"ready"` // the gateway serves
	Addresses []upAddress `json:"addresses"`
	// Functions tells how many were ready when the gateway began to serve.
	Functions string `json:"functions,omitempty"`
	// Jaeger is building, running, off, or failed with the reason behind it.
	Jaeger string `json:"jaeger"`
	// Alone says why the gateway was started without its control plane.
	Alone string `json:"alone,omitempty"`
	// Configuration is where the proxy has its own from.
	Configuration *keeper.Status `json:"configuration,omitempty"`
	Processes     []upProcess    `json:"processes"`
}

type upAddress struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Note    string `json:"note,omitempty"`
}

type upProcess struct {
	supervise.Status
	ID launch.ID `json:"id"`
}

func runDir(dataDir string) string    { return filepath.Join(dataDir, "run") }
func stateFile(dataDir string) string { return filepath.Join(runDir(dataDir), "state.json") }

// readState returns nil when there is no state file.
func readState(dataDir string) (*upState, error) {
	b, err := os.ReadFile(stateFile(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s upState
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", stateFile(dataDir), err)
	}
	return &s, nil
}

// stateWriter keeps the state file in step.
type stateWriter struct {
	dataDir string
	log     func(error)

	mu    sync.Mutex
	state upState
}

func (w *stateWriter) update(f func(*upState)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.state)
	b, err := json.MarshalIndent(&w.state, "", "  ")
	if err == nil {
		err = replaceFile(stateFile(w.dataDir), append(b, '\n'), 0o600)
	}
	if err != nil {
		w.log(fmt.Errorf("write the state: %w", err))
	}
}

// processes is a callback of the supervisor.
func (w *stateWriter) processes(all []supervise.Status) {
	w.update(func(s *upState) {
		known := map[int]launch.ID{}
		for _, p := range s.Processes {
			known[p.ID.PID] = p.ID
		}
		s.Processes = nil
		for _, st := range all {
			p := upProcess{Status: st}
			if st.PID != 0 {
				if p.ID = known[st.PID]; p.ID.PID == 0 {
					p.ID, _ = launch.Identify(st.PID)
				}
			}
			s.Processes = append(s.Processes, p)
		}
	})
}

func (w *stateWriter) snapshot() upState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// replaceFile writes a file by a rename, so that nobody sees half of it.
func replaceFile(path string, content []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// lockDataDir makes the data directory and takes its lock, which the kernel
// gives back when this process ends.
func lockDataDir(dataDir string) (unlock func(), err error) {
	if err := os.MkdirAll(runDir(dataDir), 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	if err := keyfile.Check(dataDir); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(runDir(dataDir), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	if err := flock.Take(f); err != nil {
		f.Close()
		if !errors.Is(err, flock.ErrLocked) {
			return nil, fmt.Errorf("--data-dir: lock: %w", err)
		}
		who := "another process"
		if s, err := readState(dataDir); err == nil && s != nil && s.ID.Alive() {
			who = fmt.Sprintf("process %d", s.ID.PID)
		}
		return nil, fmt.Errorf("penstock up runs already on %s (%s): stop it with `penstock down --data-dir %s`, or choose another --data-dir", dataDir, who, dataDir)
	}
	return func() { _ = flock.Close(f) }, nil
}

// reapLeftovers ends what an `up` that was killed may have left. On Linux the
// kernel has done it already.
func reapLeftovers(dataDir string) {
	s, err := readState(dataDir)
	if err != nil || s == nil {
		return
	}
	var ids []launch.ID
	for _, p := range s.Processes {
		_ = p.ID.Signal(syscall.SIGKILL)
		ids = append(ids, p.ID)
	}
	launch.WaitGone(ids, 5*time.Second)
}

// addresses is the table of what listens where.
func (s *upState) addresses() string {
	var b strings.Builder
	for _, a := range s.Addresses {
		note := a.Note
		switch {
		case a.Name != jaegerAddress || s.Jaeger == "running":
		case s.Jaeger == "building":
			note = "is being built; it joins when it is ready, and spans wait for it"
		default:
			note = firstLine(s.Jaeger)
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-22s  %-24s  %s", a.Name, a.Address, note), " ") + "\n")
	}
	return b.String()
}

// now is the state of a process at this moment: what was written when it changed last
// does not know of one that is stopped, or that ended with its supervisor.
func (p *upProcess) now() supervise.State {
	switch {
	case p.State != supervise.Running:
		return p.State
	case !p.ID.Alive():
		return "gone"
	case p.ID.Stopped():
		return "stopped"
	}
	return p.State
}

// processesServe reports whether what the `up` of a data folder needs to serve requests
// runs. It does when there is no such `up`.
func processesServe(dataDir string) bool {
	s, err := readState(dataDir)
	if dataDir == "" || err != nil || s == nil || !s.ID.Alive() {
		return true
	}
	return !slices.ContainsFunc(s.Processes, func(p upProcess) bool {
		traces := p.Name == "jaeger" || p.Name == "relay"
		return !traces && p.now() != supervise.Running
	})
}

// printProcesses shows the processes of the `up` of a data directory.
func printProcesses(w io.Writer, dataDir string) {
	if dataDir == "" {
		return // a control plane elsewhere
	}
	s, err := readState(dataDir)
	switch {
	case err != nil:
		fmt.Fprintf(w, "\nprocesses: %v\n", err)
		return
	case s == nil || !s.ID.Alive():
		fmt.Fprintf(w, "\nprocesses: no `penstock up` runs on %s; the control plane was started by itself\n", dataDir)
		return
	}
	fmt.Fprintf(w, "\nprocesses of `penstock up` (pid %d, since %s), traces: Jaeger is %s\n", s.ID.PID, s.StartedAt.Local().Format(time.DateTime), firstLine(s.Jaeger))
	table(w, "PROCESS STATE PID RESTARTS SINCE LAST-END", func(row func(...any)) {
		for _, p := range s.Processes {
			pid := ""
			if p.PID != 0 {
				pid = fmt.Sprint(p.PID)
			}
			row(p.Name, p.now(), pid, p.Restarts, time.Since(p.Since).Round(time.Second).String(), firstLine(p.Detail))
		}
	})
	if c := s.Configuration; c != nil && c.Problem != "" {
		fmt.Fprintf(w, "\n%s\n", configurationLine(upProxy, *c))
	}
	fmt.Fprintf(w, "\naddresses:\n%s", s.addresses())
}
