package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/penstock-gateway/penstock/internal/pause"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
	"github.com/penstock-gateway/penstock/xds/keeper"
)

const (
	// controlWait is how long the gateway waits for a control plane that starts, when it
	// can serve without.
	controlWait = 10 * time.Second
	// controlAgain is the first pause before a control plane that did not start is started
	// again; pauses grow to controlAgainMax.
	controlAgain    = 2 * time.Second
	controlAgainMax = time.Minute
)

// openKeeper opens what the proxy keeps of its configuration, and serves it to the proxy
// until the gateway is stopped.
func (u *up) openKeeper() (err error) {
	dir := filepath.Join(u.f.dataDir, "kept")
	if u.xdsSocket, err = socket.Path(runDir(u.f.dataDir), "xds.sock"); err != nil {
		return err
	}
	base := filepath.Join(u.pkiDir(), "proxy-"+upProxy)
	u.keeper, err = keeper.New(keeper.Options{
		Dir: dir, Identity: upProxyID, Socket: u.xdsSocket, Control: []string{loopback(u.f.xds)}, MaxAge: u.f.keptMaxAge,
		CertFile: base + ".crt", KeyFile: base + ".key", CAFile: filepath.Join(u.pkiDir(), "ca.crt"), ControlSPIFFE: bootstrap.ControlSPIFFE,
		Logger:   u.log,
		OnChange: func(s keeper.Status) { u.state.update(func(st *upState) { st.Configuration = &s }) },
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l, err := u.keeper.Listen(ctx)
	if err != nil {
		cancel()
		return errors.Join(err, u.keeper.Close())
	}
	done, k := make(chan error, 1), u.keeper
	go func() { done <- k.Serve(ctx, l) }()
	u.endKeeper = func() error {
		cancel()
		return errors.Join(<-done, k.Close())
	}
	return nil
}

// upProxyID is the identity of the proxy that `up` runs.
var upProxyID = pki.ProxyID("default", "-", upProxy)

// startControl starts the control plane. When it does not start, or not soon, and the
// proxy can start from what it keeps, the gateway serves without it.
func (u *up) startControl(ctx context.Context) (alone bool, err error) {
	ready := make(chan error, 1)
	go func() { ready <- u.sup.Start(ctx, u.control()) }()
	var late <-chan time.Time
	if u.keeper != nil && u.keeper.Usable() == nil {
		timer := time.NewTimer(controlWait)
		defer timer.Stop()
		late = timer.C
	}
	var why error
	select {
	case err := <-ready:
		if err == nil || ctx.Err() != nil || late == nil {
			return false, err
		}
		why = err
		ready <- err
	case <-late:
		why = fmt.Errorf("it is not ready after %s", controlWait)
	}
	u.state.update(func(s *upState) { s.Alone = why.Error() })
	u.log.Error("the control plane does not start: the gateway serves its last configuration from disk, functions do not run, and nothing can be changed; it is tried again", "error", why)
	u.background.Go(func() { u.joinControl(ctx, ready) })
	return true, nil
}

// joinControl waits for a control plane that did not start, starts it again and again, and
// does what start does after it.
func (u *up) joinControl(ctx context.Context, ready <-chan error) {
	err := <-ready
	for again := pause.Between(controlAgain, controlAgainMax); err != nil; {
		if !again.Wait(ctx) {
			return
		}
		err = u.sup.Start(ctx, u.control())
	}
	if err := errors.Join(u.certificates(), u.configure(ctx)); err != nil {
		u.log.Error("the control plane is there, but cannot be configured", "error", err)
		return
	}
	functions := u.awaitFunctions(ctx)
	u.state.update(func(s *upState) { s.Alone, s.Functions = "", functions })
	u.log.Info("the control plane is there", "functions", functions)
}

// servesFromDisk is the line of a proxy that has its configuration from disk; "" for
// others.
func (s *upState) servesFromDisk() string {
	if s.Configuration == nil || s.Configuration.Source != keeper.Disk {
		return ""
	}
	return configurationLine(upProxy, *s.Configuration)
}

// printFromDisk tells, when there is no control plane to ask, what the proxy of the `up`
// beside it serves.
func printFromDisk(w io.Writer, f clientFlags) {
	s, err := readState(cmp.Or(f.DataDir, "./.penstock"))
	if f.output != "text" || err != nil || s == nil || !s.ID.Alive() {
		return
	}
	if line := s.servesFromDisk(); line != "" {
		fmt.Fprintln(w, line)
	}
}
