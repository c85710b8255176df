package functions_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/instance"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/launch"
)

const internalError = `{"message":"Internal Server Error"}`

// TestLambdaFaults: what a caller gets from a handler that fails, what the log
// says, whether the process goes on, and that the next request is answered.
func TestLambdaFaults(t *testing.T) {
	t.Parallel()
	cases := []struct {
		handler, path, kind, body, log string
		status                         int
		replaced                       bool
		timeout                        time.Duration
	}{
		{handler: "raises", path: "/", status: 502, kind: "handler-error", body: internalError, log: "no such order"},
		{handler: "rubbish", path: "/", status: 502, kind: "handler-error", body: internalError, log: "MarshalError"},
		{handler: "bad_status", path: "/", status: 502, kind: "bad-response", body: internalError, log: "statusCode is"},
		{handler: "bad_body", path: "/", status: 502, kind: "bad-response", body: internalError, log: "body must be text"},
		{handler: "bad_header", path: "/", status: 502, kind: "bad-response", body: internalError, log: "does not allow"},
		{handler: "bare", path: "/", status: 200, body: "[1, 2]"},
		{handler: "big", path: "/big", status: 502, kind: "too-large", body: internalError, log: "too large"},
		{handler: "exits", path: "/", status: 502, kind: "died", log: "exit status 3", replaced: true},
		{handler: "hangs", path: "/hang", status: 504, kind: "deadline", log: "longer than the function's timeout of 300ms", replaced: true, timeout: 300 * time.Millisecond},
		{handler: "spins", path: "/hang", status: 504, kind: "deadline", log: "longer than the function's timeout of 300ms", replaced: true, timeout: 300 * time.Millisecond},
		// Reading 100 MB may take longer than the usual timeout of a test's function.
		{handler: "prints", path: "/print", status: 200, body: "printed", log: "prints too much", timeout: 10 * time.Minute},
		{handler: "prints_one_line", path: "/", status: 200, body: "printed", log: "prints too much", timeout: 10 * time.Minute},
	}
	r := startRunner(t)
	for _, c := range cases {
		t.Run(c.handler, func(t *testing.T) {
			id := strings.ReplaceAll(c.handler, "_", "-")
			r.want(python(id, "app."+c.handler, func(f *pb.Function) {
				if c.timeout > 0 {
					f.Timeout = durationpb.New(c.timeout)
				}
			}))
			before := r.ready(id, 1)[0]
			a := mustSend(t, before, "POST", c.path, "{}", "x-request-id", "rid-"+id)
			if a.status != c.status || a.header.Get("x-penstock-error") != c.kind {
				t.Errorf("%d %v %.300s, want %d %s", a.status, a.header, a.body, c.status, c.kind)
			}
			if c.body != "" && a.body != c.body {
				t.Errorf("body %.300q, want %q", a.body, c.body)
			}
			if c.body == internalError && a.header.Get("x-amzn-requestid") != "rid-"+id {
				t.Errorf("x-amzn-requestid is %q", a.header.Get("x-amzn-requestid"))
			}
			if c.kind == "died" || c.kind == "deadline" {
				var e instance.Problem
				if json.Unmarshal([]byte(a.body), &e) != nil || e.Code != instance.Code(c.kind) || e.Detail == "" || strings.Contains(a.body, name(id)) || e.RequestID != "rid-"+id {
					t.Errorf("body %s", a.body)
				}
			}
			if c.log != "" {
				r.logs.await(t, c.log, func(m map[string]any) bool {
					b, _ := json.Marshal(m)
					return m["function"] == name(id) && strings.Contains(string(b), c.log)
				})
			}
			if c.replaced {
				r.replacedBy(t, id, before)
			} else if after := r.ready(id, 1)[0]; after.GetPid() != before.GetPid() {
				t.Errorf("the process was replaced")
			}
			if c.handler == "hangs" || c.handler == "spins" || c.handler == "prints" || c.handler == "big" {
				if a := r.any(t, id, "GET", "/after", ""); a.status != 200 {
					t.Errorf("afterwards: %d %s", a.status, a.body)
				}
			}
		})
	}
	if size := r.logs.bytes(); size > 32<<20 {
		t.Errorf("handlers that print without end made %d bytes of log", size)
	}
}

func (r *runner) replacedBy(t *testing.T, function string, before *pb.Instance) *pb.Instance {
	t.Helper()
	s := r.await("a new instance of "+function, func(s *pb.RunnerState) bool {
		of := instances(s, function)
		return len(of) == 1 && of[0].GetPid() != before.GetPid() && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
	})
	return instances(s, function)[0]
}

// TestLambdaStart: functions that cannot start say why, in their problem and in
// the state of their instances, and are tried again.
func TestLambdaStart(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	in := func(source string) func(*pb.Function) { return func(f *pb.Function) { f.Source = source } }
	provided := func(f *pb.Function) { f.GetLambda().Runtime = pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED }
	cases := map[string]struct {
		function *pb.Function
		want     []string
		// never means that it is not even tried.
		never bool
	}{
		"no-handler":  {function: python("no-handler", "app.nobody"), want: []string{"Runtime.HandlerNotFound", "Handler 'nobody' missing on module 'app'"}},
		"no-module":   {function: python("no-module", "shop.lambda_handler"), want: []string{"Runtime.ImportModuleError", "No module named 'shop'"}},
		"bad-name":    {function: python("bad-name", "lambda_handler"), want: []string{`handler "lambda_handler" is not module.function`}, never: true},
		"import":      {function: python("import", "app.lambda_handler", in("broken")), want: []string{"boom at import"}},
		"syntax":      {function: python("syntax", "app.lambda_handler", in("syntax")), want: []string{"Runtime.UserCodeSyntaxError", "Syntax error in module 'app'"}},
		"no-source":   {function: python("no-source", "app.lambda_handler", in("nothing")), want: []string{`source "nothing" does not exist`}, never: true},
		"concurrency": {function: python("concurrency", "app.echo", func(f *pb.Function) { f.Concurrency = 5 }), want: []string{"concurrency is 5"}, never: true},
		"mute": {function: python("mute", "x", in("script/mute"), provided, func(f *pb.Function) { f.StartTimeout = durationpb.New(300 * time.Millisecond) }),
			want: []string{"not ready within its start timeout of 300ms", "I never ask for an event"}},
		"quits":        {function: python("quits", "x", in("script/quits"), provided), want: []string{"ended before it was ready: exit status 0", "nothing to do here"}},
		"notexec":      {function: python("notexec", "x", in("script/notexec"), provided), want: []string{"bootstrap in the source is not executable"}, never: true},
		"no-bootstrap": {function: python("no-bootstrap", "x", provided), want: []string{"no executable named bootstrap"}, never: true},
	}
	var all []*pb.Function
	for _, c := range cases {
		all = append(all, c.function)
	}
	good := python("good", "app.echo")
	r.want(append(all, good)...)
	for id, c := range cases {
		t.Run(id, func(t *testing.T) {
			s := r.await("the problem of "+id, func(s *pb.RunnerState) bool { return s.GetProblems()[name(id)] != "" })
			for _, w := range c.want {
				if p := s.GetProblems()[name(id)]; !strings.Contains(p, w) {
					t.Errorf("the problem lacks %q: %s", w, p)
				}
			}
			of := instances(s, id)
			if c.never != (len(of) == 0) {
				t.Errorf("instances: %v", of)
			}
			for _, i := range of {
				if i.GetAddress() != "" || i.GetState() == pb.InstanceState_INSTANCE_STATE_READY {
					t.Errorf("an instance that cannot start is reported as %v", i)
				}
			}
		})
	}
	// Its neighbours do not keep the good one from serving.
	s := r.await("the good one", func(s *pb.RunnerState) bool {
		of := instances(s, "good")
		return len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
	})
	if a := mustSend(t, instances(s, "good")[0], "GET", "/", ""); a.status != 200 || s.GetProblems()[name("good")] != "" {
		t.Errorf("the good one: %d, problem %q", a.status, s.GetProblems()[name("good")])
	}
}

// TestLambdaLimits: the body limit, and hard concurrency with its queue.
func TestLambdaLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "pid")
	r := startRunner(t, func(c *functions.Config) { c.MaxEventBytes = 1000 })
	r.want(python("echo", "app.bare"), python("stuck", "app.stuck", env(map[string]string{"PID_FILE": pidFile}), plain))
	echo := func() *pb.Instance {
		return instances(r.await("echo", func(s *pb.RunnerState) bool {
			of := instances(s, "echo")
			return len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
		}), "echo")[0]
	}
	if a := mustSend(t, echo(), "POST", "/", strings.Repeat("x", 1000)); a.status != 200 {
		t.Errorf("a body at the limit: %d", a.status)
	}
	a := mustSend(t, echo(), "POST", "/", strings.Repeat("x", 1001))
	if a.status != 413 || a.header.Get("x-penstock-error") != "too-large" || !strings.Contains(a.body, "1000 bytes") {
		t.Errorf("a body over the limit: %d %s", a.status, a.body)
	}

	// One request is in the handler, the queue is filled, the rest is refused; then
	// the process is killed: the one in the handler is lost, the queue is not.
	stuck := r.ready("stuck", 1)[0]
	answers := make(chan answer, 40)
	ask := func() {
		a, err := send(t.Context(), stuck, "POST", "/", "{}")
		if err != nil {
			t.Errorf("POST: %v", err)
		}
		answers <- a
	}
	go ask()
	pid := awaitFile(t, pidFile)
	if pid != strconv.Itoa(int(stuck.GetPid())) {
		t.Errorf("the handler runs in %s, reported is %d", pid, stuck.GetPid())
	}
	for range 17 {
		go ask()
	}
	full := <-answers // exactly one more than the queue holds
	if full.status != 503 || full.header.Get("x-penstock-refused") != "queue-full" {
		t.Errorf("with a full queue: %d %v", full.status, full.header)
	}
	if err := syscall.Kill(int(stuck.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	got := map[string]int{}
	for range 17 {
		a := <-answers
		got[strconv.Itoa(a.status)+" "+a.header.Get("x-penstock-error")+a.header.Get("x-penstock-refused")]++
	}
	if got["502 died"] != 1 || got["503 dead"] != 16 {
		t.Errorf("after the kill: %v", got)
	}
}

func awaitFile(t *testing.T, path string) string {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if b, err := os.ReadFile(path); err == nil {
			return string(b)
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	t.Fatalf("%s does not appear", path)
	return ""
}

// TestKilledBeforeReading: an event that a stopped process has not read when it is
// killed is refused, so that it goes elsewhere, whatever its method.
func TestKilledBeforeReading(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(python("shop", "app.bare"))
	i := r.ready("shop", 1)[0]
	if err := syscall.Kill(int(i.GetPid()), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answers := make(chan answer, 1)
	go func() {
		a, err := send(t.Context(), i, "POST", "/", "{}", "x-request-id", "rid-unread")
		if err != nil {
			t.Errorf("POST: %v", err)
		}
		answers <- a
	}()
	// The event has been sent when the shim has its span; a stopped process reads
	// nothing, whenever it is killed.
	awaitPending(t, i.GetPid())
	if err := syscall.Kill(int(i.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if a := <-answers; a.status != 503 || a.header.Get("x-penstock-refused") != "ended-before-reading" {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
}

// awaitPending waits until a socket of this process pair holds unread bytes.
func awaitPending(t *testing.T, pid int32) {
	t.Helper()
	inodes := map[string]bool{}
	fds, _ := filepath.Glob("/proc/" + strconv.Itoa(int(pid)) + "/fd/*")
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && strings.HasPrefix(target, "socket:[") {
			inodes[strings.Trim(target, "socket:[]")] = true
		}
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/net/tcp") // of its own network
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 9 && inodes[f[9]] && !strings.HasSuffix(f[4], ":00000000") {
				return
			}
		}
	}
	t.Fatal("the event does not arrive")
}

// TestStrays: what a handler leaves behind goes with its instance.
func TestStrays(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(python("forks", "app.forks", plain))
	i := r.ready("forks", 1)[0]
	var got struct{ Children []int }
	if a := mustSend(t, i, "GET", "/", ""); json.Unmarshal([]byte(a.body), &got) != nil || len(got.Children) != 2 {
		t.Fatalf("%s", a.body)
	}
	var ids []launch.ID
	for _, pid := range got.Children {
		id, err := launch.Identify(pid)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	r.want()
	r.await("nothing", func(s *pb.RunnerState) bool { return len(s.GetInstances()) == 0 })
	if left := launch.WaitGone(ids, patience); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// TestEscape: nor does what has left its group, session, environment and parent
// survive its instance; one that was let go of while its instance lives neither.
func TestEscape(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := startRunner(t)
	r.want(
		python("escapes", "app.escapes", env(map[string]string{"PID_DIR": dir, "PENSTOCK_INSTANCE": "another"}), plain),
		python("bystander", "app.echo"),
	)
	i, other := r.ready("escapes", 1)[0], r.ready("bystander", 1)[0]
	if a := mustSend(t, i, "GET", "/", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	ids := map[string]launch.ID{}
	for _, name := range []string{"orphan", "child"} {
		pid, err := strconv.Atoi(strings.TrimSpace(awaitFile(t, filepath.Join(dir, name))))
		if err != nil {
			t.Fatal(err)
		}
		if ids[name], err = launch.Identify(pid); err != nil && name == "child" {
			t.Fatal(err)
		}
	}
	// The orphan has no tie to the instance that lives.
	if left := launch.WaitGone([]launch.ID{ids["orphan"]}, patience); len(left) > 0 {
		t.Errorf("the orphan is left: %v", left)
	}
	if !ids["child"].Alive() {
		t.Error("a child of an instance that lives was killed")
	}
	if err := syscall.Kill(int(i.GetPid()), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if left := launch.WaitGone([]launch.ID{ids["child"]}, patience); len(left) > 0 {
		t.Errorf("the child is left: %v", left)
	}
	a := mustSend(t, other, "GET", "/", "")
	if a.status != 200 || !strings.Contains(a.body, `\"PENSTOCK_INSTANCE\": \"`+other.GetId()) && !strings.Contains(a.body, other.GetId()) {
		t.Errorf("the bystander: %d %s", a.status, a.body)
	}
}

// goBootstrap is a functions root with the source "go", which is golambda, built.
func goBootstrap(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "go"), 0o755); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(root, "go", "bootstrap"), ".")
	build.Dir, build.Env = "testdata/root/golambda", append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return root
}

// TestGoHandler runs aws-lambda-go: answers, errors, panics, streams and their
// trailers.
func TestGoHandler(t *testing.T) {
	t.Parallel()
	root := goBootstrap(t)
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	r.want(&pb.Function{Name: name("go"), Source: "go", Contract: &pb.Function_Lambda{Lambda: &pb.LambdaContract{
		Runtime: pb.LambdaRuntime_LAMBDA_RUNTIME_PROVIDED, Handler: "bootstrap",
	}}})
	i := r.ready("go", 1)[0]
	if a := mustSend(t, i, "PUT", "/", "hello", "x-request-id", "rid-1"); a.status != 201 || a.body != "PUT hello rid-1 go" || a.header.Get("content-type") != "text/plain" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
	if a := mustSend(t, i, "GET", "/error", ""); a.status != 502 || a.body != internalError || a.header.Get("x-penstock-error") != "handler-error" {
		t.Errorf("/error: %d %q", a.status, a.body)
	}
	a := mustSend(t, i, "GET", "/stream", "")
	if a.status != 200 || a.body != "piece 0\npiece 1\npiece 2\n" || a.header.Get("content-type") != "text/event-stream" || !slices.Equal(a.header["Set-Cookie"], []string{"a=1"}) {
		t.Errorf("/stream: %d %v %q", a.status, a.header, a.body)
	}
	if a, err := send(t.Context(), i, "GET", "/stream-fails", ""); err == nil {
		t.Errorf("/stream-fails: read as whole: %d %q", a.status, a.body)
	}
	r.logs.await(t, "of the failed stream", func(m map[string]any) bool {
		s, _ := m["error"].(string)
		return strings.Contains(s, "lost the thread")
	})
	if a := mustSend(t, i, "GET", "/panic", ""); a.status != 502 || a.body != internalError {
		t.Errorf("/panic: %d %q", a.status, a.body)
	}
	r.logs.await(t, "of the panic", func(m map[string]any) bool { return m["msg"] == "the handler failed" && m["error"] == "out of kettles" })
	next := r.replacedBy(t, "go", i)
	if a := mustSend(t, next, "GET", "/", ""); a.status != 201 {
		t.Errorf("after the panic: %d", a.status)
	}
}

// TestExamples runs the handlers of examples/support-desk.
func TestExamples(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../examples/support-desk/functions")
	if err != nil {
		t.Fatal(err)
	}
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	of := func(id string) *pb.Function {
		f := python(id, "app.lambda_handler")
		f.Source = id
		return f
	}
	r.want(of("support"), of("account"))
	for _, c := range []struct {
		function, method, path, body, contentType string
		headers                                   []string
		status                                    int
		want                                      string
	}{
		{function: "support", method: "POST", path: "/support", body: `{"question":"Where is my order?"}`, status: 200, want: "latest order is 1002"},
		{function: "support", method: "POST", path: "/support", body: `{"question":"And order 1001?"}`, contentType: "application/x-www-form-urlencoded", status: 200, want: "delivered"},
		{function: "support", method: "POST", path: "/support", body: `{"question":"I want my money back"}`, status: 200, want: "30 days"},
		{function: "support", method: "GET", path: "/support?question=shipping", status: 200, want: "2 to 4 working days"},
		{function: "support", method: "GET", path: "/support", status: 200, want: "I can help"},
		{function: "support", method: "POST", path: "/support", body: "[]", status: 400, want: "question"},
		{function: "account", method: "GET", path: "/account", headers: []string{"x-user-id", "alice", "x-user-plan", "gold"}, status: 200, want: `{"sub": "alice", "plan": "gold"}`},
		{function: "account", method: "GET", path: "/account", status: 401, want: "no claims"},
	} {
		headers := c.headers
		if c.contentType != "" {
			headers = append(headers, "content-type", c.contentType)
		}
		s := r.await(c.function, func(s *pb.RunnerState) bool {
			of := instances(s, c.function)
			return len(of) == 1 && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY
		})
		a := mustSend(t, instances(s, c.function)[0], c.method, c.path, c.body, headers...)
		if a.status != c.status || !strings.Contains(a.body, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %q", c.method, c.path, c.body, a.status, a.body, c.status, c.want)
		}
	}
}

// TestPlainUpstream runs the example's plain upstream.
func TestPlainUpstream(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "python3", "../examples/support-desk/plain/server.py", "0")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = testWriter{t}
	if err := launch.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = launch.Signal(cmd, syscall.SIGKILL); _ = cmd.Wait() })
	var line []byte
	for b := make([]byte, 1); !bytes.HasSuffix(line, []byte("\n")); line = append(line, b[0]) {
		if _, err := out.Read(b); err != nil {
			t.Fatal(err)
		}
	}
	address := strings.TrimSpace(string(line[bytes.LastIndexByte(bytes.TrimSpace(line), ' ')+1:]))
	for _, body := range []io.Reader{strings.NewReader("hello"), io.MultiReader(strings.NewReader("hel"), strings.NewReader("lo"))} { // with length, then chunked
		resp, err := http.Post("http://"+address+"/plain?a=1", "text/plain", body)
		if err != nil {
			t.Fatal(err)
		}
		var got struct{ Method, Path, Body, Upstream string }
		err = json.NewDecoder(resp.Body).Decode(&got)
		resp.Body.Close()
		if err != nil || got.Method != "POST" || got.Path != "/plain?a=1" || got.Body != "hello" || got.Upstream != "plain" {
			t.Errorf("%+v, %v", got, err)
		}
	}
}
