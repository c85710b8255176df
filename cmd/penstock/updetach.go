package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/console"
)

// maxDetachLog bounds what an error shows of the log of a background start.
const maxDetachLog = 4096

// detach starts the same in the background and returns when the gateway serves.
func (u *up) detach(ctx context.Context) error {
	// The questions that a person wants answered at once, with progress here
	// and not in a log.
	unlock, err := lockDataDir(u.f.dataDir)
	if err != nil {
		return err
	}
	reapLeftovers(u.f.dataDir)
	if err = u.f.checkPorts(ctx); err == nil {
		err = u.install(ctx)
	}
	_ = os.Remove(stateFile(u.f.dataDir))
	unlock()
	if err != nil {
		return err
	}
	logFile := filepath.Join(u.f.dataDir, "up.log")
	if err := os.Rename(logFile, logFile+".1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(u.self, withoutDetach(os.Args[1:])...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	waitCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := cmd.Wait()
		cancel(fmt.Errorf("penstock up ended (%w); its log %s ends with:\n%s", err, logFile, tailOf(logFile)))
	}()
	err = until(waitCtx, func(context.Context) error {
		s, err := readState(u.f.dataDir)
		if err != nil {
			return err
		}
		if s == nil || s.ID.PID != cmd.Process.Pid || !s.Ready {
			return errors.New("the gateway does not serve yet")
		}
		u.state = &stateWriter{state: *s}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil { // Ctrl-C: the start is not wanted any more
			_ = cmd.Process.Signal(syscall.SIGTERM)
			<-ended
		}
		return context.Cause(waitCtx)
	}
	fmt.Fprint(u.out, u.welcome())
	fmt.Fprintf(u.out, "\nIt runs in the background (pid %d, log %s). Stop it with: %s down%s\n", cmd.Process.Pid, logFile, programName(), u.dataDirFlag())
	if u.state.snapshot().Alone != "" {
		return fmt.Errorf("%w: there is no control plane", errNotServing)
	}
	return nil
}

// withoutDetach removes -d and --detach, also from a group of short flags.
func withoutDetach(args []string) []string {
	var out []string
	for _, a := range args {
		if a == "-d" || a == "--detach" || strings.HasPrefix(a, "--detach=") {
			continue
		}
		out = append(out, a)
	}
	return append(out, "--detach=false")
}

func tailOf(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-maxDetachLog), io.SeekStart)
	}
	b, _ := io.ReadAll(f)
	var out bytes.Buffer
	w := console.New(&out, console.Text, false)
	for line := range strings.Lines(string(b)) {
		w.Line("", strings.TrimRight(line, "\n"))
	}
	return strings.TrimRight(out.String(), "\n")
}

// jaegerAddress is the name of Jaeger's address.
const jaegerAddress = "traces (Jaeger)"

// jaegerState is the state of Jaeger before it is started.
func (f *upFlags) jaegerState() string {
	if f.otlpTo != "" {
		return "not run: traces go to " + f.otlpTo
	}
	return "off"
}

// table is what listens where.
func (f *upFlags) table() []upAddress {
	t := []upAddress{
		{"gateway", "http://" + loopback(f.gateway), ""},
		{"configuration API", f.apiAddress(), f.apiNote()},
		{"REST, health, metrics", f.restURL(), "/readyz and /livez; with a credential /v1/…, /metrics, /debug"},
		{"xDS, runners", loopback(f.xds), "mutual TLS, certificates in " + filepath.Join(f.dataDir, "pki")},
	}
	for i := range f.limiters {
		t = append(t, upAddress{"limiter", loopback(f.limiterAddress(i)), ""})
	}
	if f.ownJaeger() {
		t = append(t, upAddress{jaegerAddress, f.restURL() + "/traces/", "with a credential; `penstock trace web` shows the newest in a browser"})
	}
	if f.traces() {
		t = append(t, upAddress{"OTLP", loopback(f.otlpAddress()), "gRPC, relayed to " + f.collector()})
	}
	return t
}

func (f *upFlags) apiSecure() bool { return f.apiTLS.secure(f.api, f.http) }

func (f *upFlags) apiNote() string {
	tls := ""
	if f.apiSecure() {
		tls = " with TLS"
	}
	return "gRPC" + tls + ", needs a credential; `penstock` commands use the socket in " + connect.Dir(f.dataDir)
}

// apiAddress is the address of the configuration API as others than the commands of
// this machine use it.
func (f *upFlags) apiAddress() string { return f.reached(f.api) }

func (f *upFlags) restURL() string {
	if f.apiSecure() {
		return "https://" + f.reached(f.http)
	}
	return "http://" + loopback(f.http)
}

// reached is an address of the API as a client names it.
func (f *upFlags) reached(address string) string {
	if !beyondLoopback(address) {
		return address
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	return net.JoinHostPort(f.apiTLS.host(address), port)
}

// loginHint says how another machine works with this gateway; "" when none can.
func (f *upFlags) loginHint(program, dataDirFlag string) string {
	if !f.apiSecure() {
		return ""
	}
	login := "penstock login --server https://" + f.apiAddress()
	if beyondLoopback(f.http) {
		login += " --http " + f.reached(f.http)
	}
	note := ""
	if f.apiTLS.cert != "" {
		note = " (with --ca FILE, unless a public authority signed --api-cert)"
	}
	return "\nFrom another machine:\n\n" +
		"  " + program + " access token create laptop --role admin --project '*'" + dataDirFlag + "  # here: prints a token, once\n" +
		"  " + login + " --token-file -  # there: paste the token, end with Ctrl-D" + note + "\n"
}

// welcome is the table of addresses and what to try next.
func (u *up) welcome() string {
	s := u.state.snapshot()
	var b strings.Builder
	if s.Alone != "" {
		fmt.Fprintf(&b, "\nThe gateway serves, without its control plane: %s\n\nThe control plane does not start, and is tried again: %s\n\n", s.servesFromDisk(), s.Alone)
	} else {
		fmt.Fprintf(&b, "\nPenstock is up.\n\n")
	}
	b.WriteString(s.addresses())
	if s.Functions != "" {
		fmt.Fprintf(&b, "  %-22s  %s\n", "functions", s.Functions)
	}
	fmt.Fprintf(&b, "\nWhat to try next:\n\n")
	p := programName()
	lines := [][2]string{
		{p + " status" + u.dataDirFlag(), "what is served by whom, functions, processes"},
		{p + " list routes" + u.dataDirFlag(), "what the gateway routes"},
		{"curl -i http://" + loopback(u.f.gateway) + u.config.path(), "a request; its trace id is in the header x-trace-id"},
		{p + " explain GET http://" + loopback(u.f.gateway) + u.config.path() + u.dataDirFlag(), "which route answers, with which policies"},
		{p + " apply -f FILE" + u.dataDirFlag(), "change it; returns when the change is served"},
		{p + " token --subject alice" + u.dataDirFlag(), "a token for routes that ask for one"},
		{p + " trace ID" + u.dataDirFlag(), "the way of one request"},
	}
	width := 0
	for _, l := range lines {
		width = max(width, len(l[0]))
	}
	for _, l := range lines {
		fmt.Fprintf(&b, "  %-*s  # %s\n", width, l[0], l[1])
	}
	b.WriteString(u.f.loginHint(p, u.dataDirFlag()))
	for _, c := range u.f.config {
		for _, dir := range []string{c, filepath.Dir(c)} {
			if readme := filepath.Join(dir, "README.md"); isFile(readme) {
				fmt.Fprintf(&b, "\nWhat runs here is explained in %s\n", readme)
				return b.String()
			}
		}
	}
	return b.String()
}

func (u *up) dataDirFlag() string {
	if def, err := filepath.Abs("./.penstock"); err == nil && def == u.f.dataDir {
		return ""
	}
	return " --data-dir " + u.f.dataDir
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// programName is what a person types to call this program.
func programName() string {
	if strings.ContainsRune(os.Args[0], '/') {
		return os.Args[0]
	}
	return "penstock"
}
