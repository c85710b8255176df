package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/supervise"
)

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one that says %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error does not say %q:\n%v", p, err)
		}
	}
}

func TestUpFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"--gateway-listen", "8080"}, []string{"--gateway-listen", `"8080" is not ADDRESS:PORT`}},
		{[]string{"--gateway-listen", "127.0.0.1:0"}, []string{"no port from 1 to 65535"}},
		{[]string{"--gateway-listen", "127.0.0.1:65536"}, []string{"no port from 1 to 65535"}},
		{[]string{"--xds-listen", "example.com:7401"}, []string{"--xds-listen", "IP address of this machine"}},
		{[]string{"--limiters", "0"}, []string{"--limiters 0", "from 1 to 16"}},
		{[]string{"--limiters", "2"}, []string{"--limiters 2", "--redis-url"}},
		{[]string{"--config", "/does/not/exist"}, []string{"--config", "/does/not/exist"}},
		{[]string{"--functions-root", "/does/not/exist"}, []string{"--functions-root /does/not/exist is not a folder"}},
		{[]string{"--uid-base", "5"}, []string{"--uid-base, --uid-count", "uids 5 to 65540 is not valid"}},
		{[]string{"--run", "plain"}, []string{"--run", "NAME=COMMAND"}},
		{[]string{"--run", "Plain=true"}, []string{"lower-case"}},
		{[]string{"--run", "envoy=true"}, []string{"a process of Penstock itself"}},
		{[]string{"--run", "a="}, []string{"has no command"}},
		{[]string{"--run", "a='x"}, []string{"a quote is not closed"}},
		{[]string{"--run", "a=true", "--run", "a=false"}, []string{"two processes have the name a"}},
		{[]string{"--settings", "/does/not/exist"}, []string{"--settings", "/does/not/exist"}},
		{[]string{"--envoy-path", "/does/not/exist", "--no-jaeger"}, []string{"--envoy-path", "/does/not/exist"}},
		{[]string{"--limiters", "0", "--api-listen", "x"}, []string{"--limiters 0", "--api-listen"}}, // all at once
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			c := newUpCommand()
			free := freePorts(t)
			args := append([]string{"--data-dir", t.TempDir()}, free...)
			c.SetArgs(append(args, test.args...))
			c.SilenceErrors, c.SilenceUsage = true, true
			wantError(t, c.ExecuteContext(t.Context()), test.want...)
		})
	}
}

// freePorts returns flags that give every address a port that is free.
func freePorts(t *testing.T) []string {
	t.Helper()
	var f upFlags
	var args []string
	for _, a := range f.addresses() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		args = append(args, "--"+a.flag, l.Addr().String())
	}
	return args
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newUpCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	args := append(freePorts(t), "--data-dir", t.TempDir(), "--gateway-listen", l.Addr().String())
	c.SetArgs(args)
	wantError(t, c.ExecuteContext(t.Context()), "port "+port+" is not free (address already in use)", "--gateway-listen")

	c = newUpCommand()
	c.SilenceErrors, c.SilenceUsage = true, true
	c.SetArgs(append(freePorts(t), "--data-dir", t.TempDir(), "--api-listen", "127.0.0.1:29999", "--xds-listen", "127.0.0.1:29999"))
	wantError(t, c.ExecuteContext(t.Context()), "--api-listen and --xds-listen both want port 29999")
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "penstock.yaml")
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("# all forms\ngateway-listen: 127.0.0.1:9080\nlimiters: 3\nno-jaeger: true\nconfig: [a, b]\nfunctions-root: f\nrun:\n  plain: [python3, \"it's.py\", \"8090\"]\n")
	read := func(args ...string) (map[string]string, error) {
		c := newUpCommand()
		if err := c.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		err := readSettings(file, false, c)
		out := map[string]string{}
		for _, name := range []string{"gateway-listen", "limiters", "no-jaeger", "config", "functions-root"} {
			out[name] = c.Flags().Lookup(name).Value.String()
		}
		run, _ := c.Flags().GetStringArray("run")
		out["run"] = strings.Join(run, "|")
		return out, err
	}
	got, err := read("--limiters", "5")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"gateway-listen": "127.0.0.1:9080", "limiters": "5", "no-jaeger": "true", "config": "[a,b]", "functions-root": "f",
		"run": `plain='python3' 'it'\''s.py' '8090'`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	p, err := parseRun(got["run"])
	if err != nil || p.Command != "python3" || !slices.Equal(p.Args, []string{"it's.py", "8090"}) {
		t.Errorf("run: %+v, %v", p, err)
	}
	if got, err := read("--config", "c"); err != nil || got["config"] != "[c]" || got["functions-root"] != "" {
		t.Errorf("with another --config: %v, %v", got, err)
	}
	for content, want := range map[string][]string{
		"gateway: x\n":               {"penstock.yaml:1: gateway", "no such setting"},
		"detach: true\n":             {"no such setting"},
		"limiters: 1\nlimiters: 2\n": nil,
		"limiters: many\n":           {"penstock.yaml:1: limiters", "many"},
		"limiters: {a: b}\n":         {"want a text"},
		"config: [[a]]\n":            {"line 1: want a text"},
		"run: x\n":                   {"NAME: [PROGRAM"},
		"run: {a: x}\n":              {"want a list"},
		"- a\n":                      {"penstock.yaml:1", "want entries"},
		"a: [\n":                     {"penstock.yaml"},
		"gateway: x\nlimiters: y\n":  {"penstock.yaml:1", "penstock.yaml:2"}, // all at once
	} {
		write(content)
		if content == "limiters: 1\nlimiters: 2\n" {
			if _, err := read(); err == nil || !strings.Contains(err.Error(), "2") {
				t.Errorf("a repeated key: %v", err)
			}
			continue
		}
		_, err := read()
		wantError(t, err, want...)
	}
	write("")
	if _, err := read(); err != nil {
		t.Errorf("an empty file: %v", err)
	}
	if err := readSettings(filepath.Join(dir, "absent"), true, newUpCommand()); err != nil {
		t.Errorf("an absent default file: %v", err)
	}
}

func FuzzSplitWords(f *testing.F) {
	for _, s := range []string{"", "a b", `a 'b c' "d\"e" f\ g`, `'`, `\`, "é\tü"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words, err := splitWords(s)
		if err != nil {
			return
		}
		// Quoting each word and splitting again gives the same words.
		var quoted []string
		for _, w := range words {
			quoted = append(quoted, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
		}
		again, err := splitWords(strings.Join(quoted, " "))
		if err != nil || !slices.Equal(words, again) {
			t.Errorf("%q: %q, then %q (%v)", s, words, again, err)
		}
	})
}

func TestTokenErrors(t *testing.T) {
	for _, test := range []struct {
		change func(*tokenFlags)
		want   []string
	}{
		{func(f *tokenFlags) { f.subject = "" }, []string{"--subject"}},
		{func(f *tokenFlags) { f.claims = []string{"x"} }, []string{`--claim "x"`, "NAME=TEXT"}},
		{func(f *tokenFlags) { f.claims = []string{"=x"} }, []string{"NAME=TEXT"}},
		{func(f *tokenFlags) { f.claims = []string{"x:={"} }, []string{"not valid JSON"}},
		{func(f *tokenFlags) { f.claims = []string{"sub=bob"} }, []string{"--subject"}},
		{func(f *tokenFlags) { f.claims = []string{"a=b", "a=c"} }, []string{"given before"}},
		{func(f *tokenFlags) { f.expires = 25 * time.Hour }, []string{"--expires 25h", "24h"}},
		{func(f *tokenFlags) { f.subject, f.claims, f.expires = "", []string{"x", "y:=z"}, -48*time.Hour }, []string{"--subject", `"x"`, `"y:=z"`, "--expires"}},
	} {
		f := tokenFlags{subject: "alice", expires: time.Hour}
		test.change(&f)
		_, err := f.request()
		wantError(t, err, test.want...)
	}
	f := tokenFlags{subject: "alice", expires: time.Hour, claims: []string{"plan=gold", `roles:=["a","b"]`, "level:=9007199254740993", "url=x=y", "quote=\"", "empty="}}
	r, err := f.request()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"plan": `"gold"`, "roles": `["a","b"]`, "level": "9007199254740993", "url": `"x=y"`, "quote": `"\""`, "empty": `""`}
	if !maps.Equal(r.GetClaims(), want) {
		t.Errorf("claims %v", r.GetClaims())
	}
}

// TestOldDevKey: the key that earlier builds kept in a file goes; what else is there stays.
func TestOldDevKey(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, "dev-issuer")
	if err := removeOldDevKey(dir); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"key.pem", "jwks.json", "mine.txt"} {
		if err := errors.Join(os.MkdirAll(old, 0o700), os.WriteFile(filepath.Join(old, f), nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeOldDevKey(dir); err != nil {
		t.Fatal(err)
	}
	if isFile(filepath.Join(old, "key.pem")) || !isFile(filepath.Join(old, "mine.txt")) {
		t.Error("want the key to be gone, and what is somebody else's to be there")
	}
	if err := errors.Join(os.Remove(filepath.Join(old, "mine.txt")), removeOldDevKey(dir)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the empty folder is still there")
	}
}

func TestDataDirLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	me, err := launch.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	w := &stateWriter{dataDir: dir, log: func(err error) { t.Error(err) }}
	w.update(func(s *upState) { s.ID = me })
	_, err = lockDataDir(dir)
	wantError(t, err, "runs already on "+dir, "penstock down --data-dir "+dir, "process "+jsonOf(t, me.PID))
	unlock()
	unlock, err = lockDataDir(dir)
	if err != nil {
		t.Errorf("after the lock was given back: %v", err)
	}
	unlock()
	_, err = lockDataDir("/proc/nothing")
	wantError(t, err, "--data-dir")
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestDownLeftovers: down ends what a killed `up` left, and nobody else.
func TestDownLeftovers(t *testing.T) {
	dir := t.TempDir()
	var out bytes.Buffer
	if err := runDown(&out, dir, time.Second); err != nil || !strings.Contains(out.String(), "no `penstock up` runs") {
		t.Errorf("without a state: %v, %s", err, out.String())
	}
	if err := os.MkdirAll(runDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	left := exec.Command("sleep", "600")
	stranger := exec.Command("sleep", "600")
	for _, c := range []*exec.Cmd{left, stranger} {
		if err := launch.Start(c); err != nil {
			t.Fatal(err)
		}
	}
	defer func() { _ = launch.Signal(stranger, syscall.SIGKILL); _ = stranger.Wait() }()
	leftID, err := launch.Identify(left.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = left.Wait(); close(ended) }()
	w := &stateWriter{dataDir: dir, log: func(err error) { t.Error(err) }}
	w.update(func(s *upState) {
		s.ID = launch.ID{PID: os.Getpid(), Start: "another boot"} // our number, once used by an `up`
		s.Processes = []upProcess{
			{Status: supervise.Status{Name: "left"}, ID: leftID},
			{Status: supervise.Status{Name: "reused"}, ID: launch.ID{PID: stranger.Process.Pid, Start: "another boot"}},
		}
	})
	out.Reset()
	if err := runDown(&out, dir, time.Second); err != nil {
		t.Fatal(err)
	}
	<-ended
	if id, err := launch.Identify(stranger.Process.Pid); err != nil || !id.Alive() {
		t.Error("a stranger with the number of an old child was ended")
	}
	if !strings.Contains(out.String(), "had not stopped in order") || isFile(stateFile(dir)) {
		t.Errorf("said %q; state file there: %v", out.String(), isFile(stateFile(dir)))
	}
	if err := os.WriteFile(stateFile(dir), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, runDown(&out, dir, time.Second), "state.json is damaged")
}

// syncBuffer is a bytes.Buffer for several writers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
