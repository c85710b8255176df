package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/ports"
)

func TestWants(t *testing.T) {
	for _, test := range []struct {
		args     []string
		settings string
		want     map[string]string // what differs from the defaults
	}{
		{nil, "", nil},
		{[]string{"--gateway-listen", "127.0.0.1:9080"}, "", map[string]string{"gateway-listen": "127.0.0.1:9080"}},
		{[]string{"-d", "--gateway-listen=:9080"}, "", map[string]string{"gateway-listen": ":9080"}},
		{[]string{"--gateway-listen"}, "", nil},
		{nil, "config: [x]\ngateway-listen: \"127.0.0.1:81\" # here\n", map[string]string{"gateway-listen": "127.0.0.1:81"}},
		{[]string{"--gateway-listen=127.0.0.1:82"}, "gateway-listen: 127.0.0.1:81\n", map[string]string{"gateway-listen": "127.0.0.1:82"}},
	} {
		got := map[string]string{}
		for _, w := range wants(test.args, test.settings) {
			got[w.Flag] = w.Address
		}
		for flag, address := range ports.Defaults {
			if v, ok := test.want[flag]; ok {
				address = v
			}
			if got[flag] != address {
				t.Errorf("%q %q: --%s is %q, want %q", test.args, test.settings, flag, got[flag], address)
			}
		}
	}
}

// TestPortsFirst: a port that is taken is told before anything is built or fetched.
func TestPortsFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Chdir(t.TempDir())
	var out bytes.Buffer
	args := []string{"--gateway-listen", l.Addr().String()}
	for _, w := range wants(nil, "") {
		if w.Flag != "gateway-listen" {
			args = append(args, "--"+w.Flag, "127.0.0.1:0")
		}
	}
	err = prepare(t.Context(), args, &out)
	if err == nil || !strings.Contains(err.Error(), "is not free (address already in use)") || !strings.Contains(err.Error(), "--gateway-listen") {
		t.Errorf("a port in use: %v", err)
	}
	if out.Len() > 0 {
		t.Errorf("it began: %s", out.String())
	}
}

func TestRunning(t *testing.T) {
	dir := t.TempDir()
	if running(dir) {
		t.Error("an empty folder is in use")
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "run", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if running(dir) {
		t.Error("a lock that nobody holds counts")
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if !running(dir) {
		t.Error("a lock that is held does not count")
	}
	if got := dataDir([]string{"--data-dir", dir}, "data-dir: /x\n"); got != dir {
		t.Errorf("data folder %s", got)
	}
	if got := dataDir(nil, "data-dir: /x\n"); got != "/x" {
		t.Errorf("data folder %s", got)
	}
}

func TestProgress(t *testing.T) {
	p := &progress{}
	if s := p.state(); s != "" {
		t.Errorf("at the beginning: %s", s)
	}
	p.read(strings.NewReader("go: downloading example.com/a v1.0.0\ngo: downloading example.com/b v1.0.0\n"))
	if s := p.state(); s != "fetching Go modules: 2 so far" {
		t.Error(s)
	}
	p.set(10)
	p.read(strings.NewReader("internal/abi\nexample.com/a/v2\n# example.com/a/v2\nx.go:3:1: undefined: y\n"))
	if s := p.state(); s != "building Penstock: 2 of at most 10 packages" {
		t.Error(s)
	}
	if got := strings.Join(p.last, "|"); got != "# example.com/a/v2|x.go:3:1: undefined: y" {
		t.Error(got)
	}
	out := &lines{w: new(bytes.Buffer), begin: time.Now()}
	if _, err := p.run(t.Context(), out, "build", "./does/not/exist"); err == nil || !strings.Contains(err.Error(), "does/not/exist") {
		t.Errorf("a build that fails: %v", err)
	}
}
