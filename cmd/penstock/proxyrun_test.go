package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/xds/keeper"
)

// startProxyRun starts `penstock proxy run` as a process of its own, and returns what ends it.
func startProxyRun(t *testing.T, dir string, more ...string) (stop func()) {
	t.Helper()
	cmd := penstock(context.Background(), append([]string{"proxy", "run", "--dir=" + dir, "--concurrency=1", "--drain-time=0s"}, more...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("proxy run: %v", err)
		}
		if t.Failed() {
			t.Logf("proxy run:\n%s", &out)
		}
	}
	t.Cleanup(stop)
	return stop
}

// TestProxyRun runs a proxy by its launcher: it serves, also when it is started again while
// no control plane is there, and says so; a configuration of another proxy it does not
// serve.
func TestProxyRun(t *testing.T) {
	p := startProxyPlane(t, 0)
	dir, other := shortDir(t), shortDir(t)
	for name, dir := range map[string]string{"edge-2": dir, "edge-3": other} {
		if out := p.must("proxy", "join", "--token="+p.token(name), "--control="+p.addr.XDS.String(), "--dir="+dir); !strings.Contains(out, "penstock proxy run --dir "+dir) {
			t.Errorf("join says %q", out)
		}
	}
	_, err := p.run("proxy", "status", "--dir="+dir)
	wantError(t, err, "no `penstock proxy run` runs there")

	stop := startProxyRun(t, dir)
	p.until("Envoy to serve", func() bool { return p.get() == "hello" })
	p.answer("the last answer")
	p.until("the change to arrive", func() bool { return p.get() == "the last answer" })
	p.until("the state to be told", func() bool {
		out, err := p.run("proxy", "status", "--dir="+dir)
		return err == nil && strings.Contains(out, "edge-2 is connected to the control plane")
	})
	p.end()
	stop()
	if got := p.get(); !strings.Contains(got, "connection refused") {
		t.Fatalf("after the end the gateway answers %q", got)
	}

	stop = startProxyRun(t, dir)
	p.until("Envoy to serve from disk", func() bool { return p.get() == "the last answer" })
	out, err := p.run("proxy", "status", "--dir="+dir)
	if !strings.Contains(out, "edge-2 serves its configuration of ") || !strings.Contains(out, " ago from disk; no control plane: ") {
		t.Errorf("status says %q", out)
	}
	wantError(t, err, "there is no control plane")
	stop()

	// What is kept elsewhere is of no use.
	for _, name := range []string{"configuration.kept", "configuration.key"} {
		b, err := os.ReadFile(filepath.Join(dir, "kept", name))
		if err == nil {
			err = os.MkdirAll(filepath.Join(other, "kept"), 0o700)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(other, "kept", name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	stop = startProxyRun(t, other)
	await(t, func() error { return stateSays(other, "is the configuration of another proxy") })
	stop()

	// Nor is what is too old.
	stop = startProxyRun(t, dir, "--kept-max-age=1ns")
	await(t, func() error { return stateSays(dir, "a proxy starts from none that is older than 1ns") })
	stop()
}

// stateSays returns an error unless the state of a proxy that runs has a problem with these
// words, and nothing from disk.
func stateSays(dir, words string) error {
	var s proxyRunState
	b, err := os.ReadFile(proxyRunFile(dir))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && (s.Configuration.Source != keeper.None || !strings.Contains(s.Configuration.Problem, words)) {
		err = errState(s.Configuration)
	}
	return err
}

type errState keeper.Status

func (e errState) Error() string {
	return string(e.Source) + ": " + e.Problem + " since " + e.Contact.Format(time.RFC3339)
}

// TestConfigurationLine: what a proxy keeps is only named once it keeps something.
func TestConfigurationLine(t *testing.T) {
	for _, c := range []struct {
		status keeper.Status
		want   string
	}{
		{keeper.Status{Source: keeper.ControlPlane}, "edge is connected to the control plane; nothing is kept for a start without it yet"},
		{keeper.Status{Source: keeper.ControlPlane, Resources: 7}, "edge is connected to the control plane; 7 resources are kept for a start without it"},
		{keeper.Status{Source: keeper.ControlPlane, Problem: "disk full\nmore"}, "edge is connected to the control plane; disk full"},
	} {
		if got := configurationLine("edge", c.status); got != c.want {
			t.Errorf("%+v: %q, want %q", c.status, got, c.want)
		}
	}
}
