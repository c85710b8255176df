package functions_test

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/sandbox"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// hostile is a function whose build runs testdata/hostile/attack.py, or another command
// in that folder, and which serves its folder.
func hostile(t testing.TB, root, id string, build ...string) *pb.Function {
	t.Helper()
	if err := os.CopyFS(filepath.Join(root, id), os.DirFS("testdata/hostile")); err != nil {
		t.Fatal(err)
	}
	return &pb.Function{Name: name(id), Source: id, Instances: 1, Contract: &pb.Function_Server{Server: &pb.ServerContract{
		Command: []string{"python3", "serve.py"}, Build: build,
	}}}
}

// tried is one attack, and what must come of it.
type tried struct {
	what string
	arg  any
	// want are the errors that it may meet; empty: it must succeed.
	want []string
}

// writeAttacks puts attacks where attack.py reads them.
func writeAttacks(t testing.TB, file string, attacks []tried) {
	t.Helper()
	list := [][2]string{}
	for _, a := range attacks {
		list = append(list, [2]string{a.what, fmt.Sprint(a.arg)})
	}
	b, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// judge compares what came of attacks with what must.
func judge(t testing.TB, attacks []tried, result string) (done []string) {
	t.Helper()
	var got [][2]string
	if err := json.Unmarshal([]byte(result), &got); err != nil || len(got) != len(attacks) {
		t.Fatalf("%d results of %d attacks: %v: %.300s", len(got), len(attacks), err, result)
	}
	for i, a := range attacks {
		verdict, text := got[i][0], got[i][1]
		switch {
		case slices.Equal(a.want, anything):
		case len(a.want) == 0 && verdict != "done":
			t.Errorf("%s %v is refused: %s", a.what, a.arg, text)
		case len(a.want) > 0 && (verdict != "refused" || !slices.Contains(a.want, text)):
			t.Errorf("%s %v: %s %.100q; want one of %v", a.what, a.arg, verdict, text, a.want)
		}
		done = append(done, text)
	}
	return done
}

// listener is a service of the machine.
func listener(t testing.TB, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String()
}

var (
	unseen   = []string{"ENOENT", "EACCES"}
	readOnly = []string{"EACCES", "EROFS", "ENOENT"}
	anything = []string{"anything"}
)

// offers reports whether this machine bounds something: an ordinary user commonly has no
// control groups.
func offers(means string) bool {
	plan, err := sandbox.Probe().Plan(sandbox.Policy{MemoryBytes: 1 << 30, Pids: 100})
	return err == nil && slices.Contains(plan.Means, means)
}

// machineAttacks are those on the machine, the runner and other functions, from
// whatever a build runs.
func machineAttacks(t testing.TB, key, root, cache, marker string) []tried {
	forks := []string{"EAGAIN"}
	if !offers(sandbox.MeansPidsLimit) {
		forks = anything
	}
	return []tried{
		{"read", key, unseen},
		{"read", "../../../../" + strings.TrimPrefix(key, "/"), unseen},
		{"read", "/etc/shadow", unseen},
		{"read", fmt.Sprintf("/proc/%d/environ", os.Getpid()), unseen},
		{"read", "/root/.ssh/*", unseen},
		{"list", root, unseen},
		{"read", filepath.Join(root, "other", "serve.py"), unseen},
		{"read", filepath.Join(cache, "packages", "*", "src", "*"), unseen},
		{"write", filepath.Join(root, "other", "serve.py"), readOnly},
		// Below a /tmp of its own it may write what nobody else sees; see untouched.
		{"write", filepath.Join(cache, "homes", "x"), anything},
		{"write", filepath.Join(cache, "layers", "x"), anything},
		{"write", "/usr/x", readOnly},
		{"write", "/etc/x", readOnly},
		{"write", "/proc/sys/kernel/hostname", readOnly},
		{"kill", os.Getpid(), []string{"ESRCH"}},
		{"hardlink", "/etc/passwd", []string{"EXDEV", "EPERM", "EACCES"}},
		{"chown", ".", []string{"EPERM", "EINVAL", "EOVERFLOW"}},
		{"mknod", "device", []string{"EPERM"}},
		{"connect", listener(t, "tcp", "127.0.0.1:0"), []string{"ECONNREFUSED", "EACCES", "EHOSTUNREACH", "ENETUNREACH"}},
		{"forks", 3000, forks},
		{"daemon", marker, nil},
		{"processes", "", nil},
		{"status", "", nil},
		{"environment", "", nil},
	}
}

// checkConfined looks at what machineAttacks that are allowed have told.
func checkConfined(t *testing.T, got []string) {
	t.Helper()
	n := len(got)
	if pids := strings.Fields(got[n-3]); len(pids) > 20 {
		t.Errorf("it sees %d processes", len(pids))
	}
	for _, want := range []string{"CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(got[n-2], want) {
			t.Errorf("its status has no %q", want)
		}
	}
	for _, v := range strings.Fields(got[n-1]) {
		known := []string{"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PWD", "OLDPWD", "SHLVL", "_", "NODE", "NODE_ENV", "EDITOR", "COLOR", "INIT_CWD", "PENSTOCK_INSTANCE", "XDG_CACHE_HOME"}
		prefixes := []string{"GO", "CGO_", "PIP_", "NPM_CONFIG_", "npm_", "HTTP", "http", "NO_PROXY", "no_proxy", "SSL_", "REQUESTS_", "NODE_EXTRA", "PYTHON", "PYENV_", "_PYENV_", "_PYPROJECT", "PEP517", "SETUPTOOLS"}
		if !slices.Contains(known, v) && !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(v, p) }) {
			t.Errorf("it has the variable %s of the runner", v)
		}
	}
}

// untouched checks that attacks changed nothing of others.
func untouched(t *testing.T, root, cache string) {
	t.Helper()
	for _, file := range []string{filepath.Join(cache, "homes", "x"), filepath.Join(cache, "layers", "x")} {
		if _, err := os.Lstat(file); err == nil {
			t.Errorf("%s was written", file)
		}
	}
	if b, err := os.ReadFile(filepath.Join(root, "other", "serve.py")); err != nil || !strings.Contains(string(b), "SimpleHTTP") {
		t.Errorf("the other function's source: %v", err)
	}
}

// noProcess checks that no process has a text in its command line.
func noProcess(t *testing.T, text string) {
	t.Helper()
	for _, where := range processesWith(t, text) {
		t.Errorf("a process that a build left runs on: %s", where)
	}
}

// TestBuildAttacks has the build of a function try what it must not do, at each level.
func TestBuildAttacks(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "ca.key")
	if err := os.WriteFile(key, []byte("PRIVATE KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, l := range []pb.IsolationLevel{pb.IsolationLevel_ISOLATION_LEVEL_SANDBOX, pb.IsolationLevel_ISOLATION_LEVEL_BEST, pb.IsolationLevel_ISOLATION_LEVEL_NONE} {
		t.Run(strings.TrimPrefix(l.String(), "ISOLATION_LEVEL_"), func(t *testing.T) {
			t.Parallel()
			root, cache, marker := t.TempDir(), t.TempDir(), "left-"+rand.Text()
			r := startRunner(t, func(c *functions.Config) { c.Root, c.CacheDir = root, cache })
			other := hostile(t, root, "other", "sh", "-c", "echo mine > $HOME/mark")
			packed := zipOf(t, map[string]string{"app.py": hello})
			r.packages = map[string][]byte{digestOf(t, packed): packed}
			r.want(other, python("packed", "app.handler", source(digestOf(t, packed))))
			r.ready("other", 1)
			r.ready("packed", 1)
			evil := hostile(t, root, "evil", "python3", "attack.py", "attacks.json", "results.json")
			level(l)(evil)
			attacks := machineAttacks(t, key, root, cache, marker)
			writeAttacks(t, filepath.Join(root, "evil", "attacks.json"), attacks)
			r.want(other, evil)
			i := r.ready("evil", 1)[0]
			noProcess(t, marker)
			checkConfined(t, judge(t, attacks, mustSend(t, i, "GET", "/results.json", "").body))
			untouched(t, root, cache)
		})
	}
}

// TestBuildBounds: a build that takes more than it may is ended, and says why.
func TestBuildBounds(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) {
		c.Root = root
		c.Build = functions.BuildLimits{MemoryBytes: 128 << 20, Processes: 64, DiskBytes: 48 << 20, Files: 4000}
	})
	cases := map[string]struct{ script, want string }{
		"disk":   {"import os\nfor n in range(1000): open(str(n), 'wb').write(b'x' * (1 << 20))\nimport time; time.sleep(1000)", "it wrote more than 48 MiB"},
		"home":   {"import os, time\nfor n in range(1000): open(os.environ['HOME'] + '/%d' % n, 'wb').write(b'x' * (1 << 20))\ntime.sleep(1000)", "it wrote more than 48 MiB"},
		"tmpdir": {"import os, time\nfor n in range(1000): open(os.environ['TMPDIR'] + '/%d' % n, 'wb').write(b'x' * (1 << 20))\ntime.sleep(1000)", "it wrote more than 48 MiB"},
		"files":  {"import time\nfor n in range(20000): open(str(n), 'w').close()\ntime.sleep(1000)", "it made more than 4000 files"},
		"file":   {"open('big', 'wb').write(b'x' * (64 << 20))", "failed: "},
		"memory": {"x = [bytearray(b'x' * (1 << 20)) for _ in range(1000)]", "out of memory, limit 128 MiB"},
		"fails":  {"import sys; print('one', flush=True); print('the reason', file=sys.stderr); sys.exit(3)", "failed: exit status 3: the reason"},
	}
	if !offers(sandbox.MeansMemory) {
		delete(cases, "memory")
	}
	var wanted []*pb.Function
	for id, c := range cases {
		wanted = append(wanted, hostile(t, root, id, "python3", "-c", c.script))
	}
	r.want(wanted...)
	for id, c := range cases {
		s := r.await("a problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
		got := s.GetProblems()[name(id)]
		if !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: %q; want one line with %q", id, got, c.want)
		}
	}
}

// TestBuildTime: a build that does not end is ended.
func TestBuildTime(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root, c.Build = root, functions.BuildLimits{Time: time.Second} })
	r.want(hostile(t, root, "endless", "sleep", "1000"))
	s := r.await("a problem", func(s *pb.RunnerState) bool { return s.GetProblems()[name("endless")] != "" })
	if got := s.GetProblems()[name("endless")]; !strings.Contains(got, "it took longer than 1s") {
		t.Error(got)
	}
}

// TestGoCachePoison: a build that spoils all of its Go cache, the standard library too,
// harms its own function only, not the next one's build nor what the runner plants there.
func TestGoCachePoison(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	golang := func(id string, build ...string) *pb.Function {
		write(t, filepath.Join(root, id, "go.mod"), "module example.com/"+id+"\n\ngo 1.24\n")
		write(t, filepath.Join(root, id, "main.go"), `package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	panic(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "whole") })))
}
`)
		return &pb.Function{Name: name(id), Source: id, Instances: 1, Contract: &pb.Function_Server{Server: &pb.ServerContract{Command: []string{"./server"}, Build: build}}}
	}
	const spoil = `n=0; for f in "$GOCACHE"/*/*; do echo poison > "$f" && n=$((n+1)); done; test $n -gt 100 && echo all is spoiled; exit 1`
	evil := golang("evil", "sh", "-c", spoil)
	r.want(evil)
	s := r.await("the end of the poisoner's build", func(s *pb.RunnerState) bool { return s.GetProblems()[name("evil")] != "" })
	if got := s.GetProblems()[name("evil")]; !strings.Contains(got, "all is spoiled") {
		t.Errorf("the poisoner: %s", got)
	}
	good := golang("good", "go", "build", "-o", "server", ".")
	r.want(evil, good)
	if a := mustSend(t, r.ready("good", 1)[0], "GET", "/", ""); a.body != "whole" {
		t.Errorf("%+v", a)
	}
}

// TestBuildOutput: what a build leaves is files, without any special right, and nothing
// that leads out.
func TestBuildOutput(t *testing.T) {
	t.Parallel()
	key := filepath.Join(t.TempDir(), "ca.key")
	if err := os.WriteFile(key, []byte("PRIVATE KEY"), 0o600); err != nil {
		t.Fatal(err)
	}
	root, cache := t.TempDir(), t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root, c.CacheDir = root, cache })
	bad := map[string]struct{ script, want string }{
		"absolute": {"import os; os.symlink(" + fmt.Sprintf("%q", key) + ", 'link')", "the symbolic link link leads out of it"},
		"relative": {"import os; os.symlink('../../../../x', 'link')", "the symbolic link link leads out of it"},
		"folder":   {"import os; os.mkdir('a'); os.symlink('../..', 'a/link')", "the symbolic link a/link leads out of it"},
		"home":     {"import os; os.symlink(os.environ['HOME'], 'link')", "the symbolic link link leads out of it"},
		"program":  {"import os; os.remove('serve.py'); os.symlink(" + fmt.Sprintf("%q", key) + ", 'serve.py')", "the symbolic link serve.py leads out of it"},
		"pipe":     {"import os; os.mkfifo('pipe')", "pipe is neither file nor folder nor link"},
		"socket":   {"import socket; socket.socket(socket.AF_UNIX).bind('s')", "s is neither file nor folder nor link"},
	}
	good := hostile(t, root, "good", "python3", "-c", `
import os
os.mkdir("sub"); os.symlink("../serve.py", "sub/inside"); os.symlink("/usr/bin/env", "env")
open("tool", "w").write("#!/bin/sh\n"); os.chmod("tool", 0o6755)
open("open", "w").close(); os.chmod("open", 0o666)
os.mkdir("closed"); open("closed/x", "w").close(); os.chmod("closed", 0)
`)
	wanted := []*pb.Function{good}
	for id, c := range bad {
		wanted = append(wanted, hostile(t, root, id, "python3", "-c", c.script))
	}
	r.want(wanted...)
	for id, c := range bad {
		s := r.await("a problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
		if got := s.GetProblems()[name(id)]; !strings.Contains(got, c.want) {
			t.Errorf("%s: %q; want %q", id, got, c.want)
		}
	}
	r.ready("good", 1)
	made, err := filepath.Glob(filepath.Join(cache, "builds", "*", "src", "tool"))
	if err != nil || len(made) != 1 {
		t.Fatalf("made: %v %v", made, err)
	}
	dir := filepath.Dir(made[0])
	for file, want := range map[string]os.FileMode{"tool": 0o755, "open": 0o644, "serve.py": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, file)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v %v, want %v", file, info.Mode(), err, want)
		}
	}
	for link, want := range map[string]string{"sub/inside": "../serve.py", "env": "/usr/bin/env"} {
		if got, err := os.Readlink(filepath.Join(dir, link)); err != nil || got != want {
			t.Errorf("%s leads to %q: %v", link, got, err)
		}
	}
}

// TestBuildCaches: what one function's build puts into its cache, it finds again, and
// another function's does not, not even with the same source and command.
func TestBuildCaches(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	build := func(id, version string) *pb.Function {
		f := hostile(t, root, id, "sh", "-c", "cat $HOME/mark > found 2>/dev/null || echo nothing > found; echo poison > $HOME/mark; mkdir -p $GOCACHE; echo poison > $GOCACHE/mark")
		f.Env = map[string]string{"VERSION": version}
		return f
	}
	found := func(id string, before ...*pb.Instance) (*pb.Instance, string) {
		t.Helper()
		var i *pb.Instance
		r.await("another instance of "+id, func(s *pb.RunnerState) bool {
			for _, x := range instances(s, id) {
				if x.GetState() == pb.InstanceState_INSTANCE_STATE_READY && !slices.ContainsFunc(before, func(b *pb.Instance) bool { return b.GetId() == x.GetId() }) {
					i = x
				}
			}
			return i != nil
		})
		return i, strings.TrimSpace(mustSend(t, i, "GET", "/found", "").body)
	}
	one := build("one", "1")
	r.want(one)
	first, text := found("one")
	if text != "nothing" {
		t.Errorf("the first build found %q", text)
	}
	next := clone(one, env(map[string]string{"VERSION": "2"}))
	r.want(next)
	if _, text := found("one", first); text != "poison" {
		t.Errorf("the next build of the function found %q in its own cache", text)
	}
	twin := build("two", "2") // the content, command and environment of one
	twin.Source = "one"
	r.want(next, twin)
	if _, text := found("two"); text != "nothing" {
		t.Errorf("another function's build found %q", text)
	}
}
