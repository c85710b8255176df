package functions_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/instance"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// serve is this test binary as the server of a function.
func serve(mode string) {
	switch mode {
	case "grpc":
		serveGRPC()
		return
	case "traced":
		serveTraced()
	case "environment":
		serveEnvironment()
	case "never":
		fmt.Println("I do not listen")
		// Without cgo the runtime would call a bare select a deadlock.
		for {
			time.Sleep(time.Hour)
		}
	case "quit":
		fmt.Println("cannot work: no database")
		os.Exit(7)
	case "late": // until there is a file
		for {
			if _, err := os.Stat(os.Getenv("LISTEN_FILE")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	paths := map[string]http.HandlerFunc{}
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		head, _ := httputil.DumpRequest(r, false)
		_ = json.NewEncoder(w).Encode(map[string]string{"head": string(head), "body": string(b)})
	}
	paths["/forks"] = func(w http.ResponseWriter, _ *http.Request) {
		c := exec.Command("sleep", "600")
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := c.Start(); err != nil {
			panic(err)
		}
		fmt.Fprintf(w, `{"children": [%d]}`, c.Process.Pid)
	}
	paths["/stubborn"] = func(w http.ResponseWriter, _ *http.Request) {
		signal.Ignore(syscall.SIGTERM)
		fmt.Fprint(w, `{"children": []}`)
	}
	paths["/exit"] = func(http.ResponseWriter, *http.Request) { os.Exit(4) }
	paths["/hang"] = func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	paths["/hang-in-body"] = func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "begun")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
	paths["/exit-in-body"] = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprintln(w, "begun")
		_ = http.NewResponseController(w).Flush()
		os.Exit(5)
	}
	paths["/endless"] = func(w http.ResponseWriter, r *http.Request) {
		for piece := make([]byte, 64<<10); ; {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}
	paths["/unread"] = func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "not read") }
	paths["/rubbish"] = func(w http.ResponseWriter, r *http.Request) {
		c, b, _ := http.NewResponseController(w).Hijack()
		fmt.Fprint(b, "this is not HTTP\r\n\r\n")
		b.Flush()
		c.Close()
	}
	paths["/echo-upgrade"] = func(w http.ResponseWriter, r *http.Request) {
		c, b, _ := http.NewResponseController(w).Hijack()
		fmt.Fprint(b, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		b.Flush()
		_, _ = io.Copy(c, b)
		c.Close()
	}
	paths["/pieces"] = func(w http.ResponseWriter, r *http.Request) {
		// Each piece goes out when the one before has come back: both directions
		// stream at once.
		control := http.NewResponseController(w)
		_ = control.EnableFullDuplex()
		in := bufio.NewReader(r.Body)
		for i := range 3 {
			fmt.Fprintf(w, "piece %d\n", i)
			_ = control.Flush()
			if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintf("ack %d\n", i) {
				panic(http.ErrAbortHandler)
			}
		}
	}
	// No ServeMux: it redirects paths that are not clean.
	fmt.Println(http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f, ok := paths[r.URL.Path]; ok {
			f(w, r)
			return
		}
		echo(w, r)
	})))
}

func TestServer(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	r.want(self(t, "web", "plain"))
	web := r.ready("web", 1)[0]
	t.Run("passes on as it came", func(t *testing.T) {
		const trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
		a := mustSend(t, web, "PUT", "/a%2Fb//c;d?x=%zz&y=1;2", "body", "traceparent", "00-"+trace+"-"+parent+"-03", "tracestate", "foo@@bar=1",
			"x-forwarded-for", "10.1.2.3", "x-request-id", "rid-1", "x-two", "1", "x-two", "2")
		var got struct{ Head, Body string }
		if err := json.Unmarshal([]byte(a.body), &got); err != nil {
			t.Fatalf("%v: %s", err, a.body)
		}
		for _, want := range []string{
			"PUT /a%2Fb//c;d?x=%zz&y=1;2 HTTP/1.1\r\n", "Host: shop.example.com\r\n", "X-Forwarded-For: 10.1.2.3\r\n",
			"X-Request-Id: rid-1\r\n", "X-Two: 1\r\nX-Two: 2\r\n", "Traceparent: 00-" + trace + "-", "-03\r\n", "Tracestate: foo@@bar=1\r\n",
		} {
			if !strings.Contains(got.Head, want) {
				t.Errorf("the server does not see %q in\n%s", want, got.Head)
			}
		}
		if strings.Contains(got.Head, parent) {
			t.Error("traceparent names the caller's span, not the runner's")
		}
		if got.Body != "body" {
			t.Errorf("body %q", got.Body)
		}
	})
	t.Run("streams in both directions", func(t *testing.T) { streams(t, web) })
	t.Run("upgrades", func(t *testing.T) { upgrades(t, web) })
	t.Run("answers rubbish", func(t *testing.T) {
		a := mustSend(t, web, "GET", "/rubbish", "")
		if a.status != 502 || a.header.Get("x-penstock-error") != "bad-response" || strings.Contains(a.body, name("web")) {
			t.Errorf("%d %v %s", a.status, a.header, a.body)
		}
	})
	if after := r.ready("web", 1)[0]; after.GetId() != web.GetId() {
		t.Error("the instance was replaced")
	}
}

func streams(t *testing.T, i *pb.Instance) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(ctx, "POST", "http://instance/pieces", pr)
	if err != nil {
		t.Fatal(err)
	}
	transport := transportTo(whereOf(i.GetAddress(), i.GetPort()))
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	in := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := in.ReadString('\n')
		if err != nil || line != fmt.Sprintf("piece %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
		fmt.Fprintf(pw, "ack %d\n", i)
	}
	pw.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func upgrades(t *testing.T, i *pb.Instance) {
	c, err := dialTo(t.Context(), whereOf(i.GetAddress(), i.GetPort()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "GET /echo-upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
	in := bufio.NewReader(c)
	resp, err := http.ReadResponse(in, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v, %v", resp, err)
	}
	fmt.Fprint(c, "ping\n")
	if line, err := in.ReadString('\n'); err != nil || line != "ping\n" {
		t.Errorf("%q, %v", line, err)
	}
}

// TestServerFaults: what a caller gets, and that requests go on afterwards.
func TestServerFaults(t *testing.T) {
	t.Parallel()
	r := startRunner(t, silence(200*time.Millisecond))
	r.want(
		self(t, "exit", "plain"), self(t, "cut", "plain"),
		self(t, "hang", "plain", timeout(200*time.Millisecond)),
		self(t, "hang-in-body", "plain", timeout(200*time.Millisecond)),
	)
	for _, f := range []string{"exit", "cut", "hang", "hang-in-body"} {
		r.ready(f, 1)
	}
	for _, c := range []struct {
		function, path, kind string
		status               int
	}{
		{"exit", "/exit", "died", 502},
		{"hang", "/hang", "deadline", 504},
	} {
		t.Run(c.function, func(t *testing.T) {
			before := r.ready(c.function, 1)[0]
			a := mustSend(t, before, "GET", c.path, "", "x-request-id", "rid-"+c.function)
			var e instance.Problem
			if err := json.Unmarshal([]byte(a.body), &e); err != nil {
				t.Fatalf("%d %s: %v", a.status, a.body, err)
			}
			if a.status != c.status || a.header.Get("x-penstock-error") != c.kind || a.header.Get("content-type") != instance.ProblemType || e.Status != c.status || e.Code != instance.Code(c.kind) || e.Detail == "" || strings.Contains(a.body, name(c.function)) || e.RequestID != "rid-"+c.function {
				t.Errorf("%d %v %s", a.status, a.header, a.body)
			}
			r.replaced(t, c.function, before)
		})
	}
	for _, c := range []struct{ function, path string }{{"cut", "/exit-in-body"}, {"hang-in-body", "/hang-in-body"}} {
		t.Run(c.function, func(t *testing.T) {
			before := r.ready(c.function, 1)[0]
			a, err := send(t.Context(), before, "GET", c.path, "")
			if err == nil || a.status != 200 {
				t.Errorf("an answer that breaks off is read as whole: %d %q, %v", a.status, a.body, err)
			}
			r.replaced(t, c.function, before)
		})
	}
}

// replaced waits for another instance in place of one, and asks it.
func (r *runner) replaced(t *testing.T, function string, before *pb.Instance) {
	t.Helper()
	r.await("a new instance of "+function, func(s *pb.RunnerState) bool {
		of := instances(s, function)
		return len(of) == 1 && of[0].GetId() != before.GetId() && of[0].GetState() == pb.InstanceState_INSTANCE_STATE_READY && of[0].GetRestarts() > 0
	})
	if a := r.any(t, function, "GET", "/after", ""); a.status != 200 {
		t.Errorf("afterwards: %d %s", a.status, a.body)
	}
}

// TestServerStart: servers that come late, never or not at all.
func TestServerStart(t *testing.T) {
	t.Parallel()
	r := startRunner(t)
	file := filepath.Join(t.TempDir(), "listen")
	short := func(f *pb.Function) { f.StartTimeout = durationpb.New(300 * time.Millisecond) }
	command := func(args ...string) func(*pb.Function) {
		return func(f *pb.Function) { f.GetServer().Command = args }
	}
	r.want(
		self(t, "late", "late", env(map[string]string{"LISTEN_FILE": file}), writable(filepath.Dir(file))),
		self(t, "never", "never", short), self(t, "quit", "quit"),
		self(t, "absent", "", command("./absent")), self(t, "nowhere", "", command("no-such-program")),
		self(t, "nosource", "", func(f *pb.Function) { f.Source = "no/such" }),
		self(t, "outside", "", func(f *pb.Function) { f.Source = "../.." }),
		self(t, "image", "", func(f *pb.Function) { f.GetServer().Image = "example.com/shop:1" }),
		self(t, "file", "", func(f *pb.Function) { f.Source = "py/app.py" }),
	)
	for function, want := range map[string][]string{
		"never":    {"nothing listens on the port in PORT", "start timeout", "I do not listen"},
		"quit":     {"exit status 7", "cannot work: no database"},
		"absent":   {`"./absent"`, "no such file", "source folder"},
		"nowhere":  {"no-such-program", "not found", "PATH"},
		"nosource": {`source "no/such"`, "does not exist"},
		"outside":  {`source "../.."`, "leaves the runner's functions root"},
		"image":    {`image "example.com/shop:1"`, "cannot run container images", "server.command"},
		"file":     {`source "py/app.py"`, "must be a folder"},
	} {
		t.Run(function, func(t *testing.T) {
			s := r.await("a problem of "+function, func(s *pb.RunnerState) bool { return s.GetProblems()[name(function)] != "" })
			for _, w := range want {
				if p := s.GetProblems()[name(function)]; !strings.Contains(p, w) {
					t.Errorf("the problem lacks %q: %s", w, p)
				}
			}
		})
	}
	// A crash loop backs off and says why.
	s := r.await("a crash loop", func(s *pb.RunnerState) bool {
		return slices.ContainsFunc(instances(s, "quit"), func(i *pb.Instance) bool {
			return i.GetRestarts() >= 2 && i.GetState() == pb.InstanceState_INSTANCE_STATE_BACKOFF
		})
	})
	if i := instances(s, "quit")[0]; !strings.Contains(i.GetMessage(), "no database") || i.GetAddress() != "" || i.GetPid() != 0 {
		t.Errorf("%v", i)
	}
	if i := instances(s, "late"); len(i) != 1 || i[0].GetState() != pb.InstanceState_INSTANCE_STATE_STARTING || i[0].GetAddress() != "" {
		t.Errorf("a server that does not listen is reported as %v", i)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	late := r.ready("late", 1)[0]
	if a := mustSend(t, late, "GET", "/", ""); a.status != 200 {
		t.Errorf("late: %d", a.status)
	}
}

// TestSymlinkOut: a source may not leave the root by a link, either.
func TestSymlinkOut(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.Symlink(t.TempDir(), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	r := startRunner(t, func(c *functions.Config) { c.Root = root })
	r.want(self(t, "link", "plain", func(f *pb.Function) { f.Source = "link" }))
	r.await("a problem", func(s *pb.RunnerState) bool {
		return strings.Contains(s.GetProblems()[name("link")], "leaves the runner's functions root")
	})
}

// TestBuild builds the example's catalog once for its content, tells the output of
// a build that fails, and mends itself when the source is mended.
func TestBuild(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "catalog"), os.DirFS("../examples/support-desk/functions/catalog")); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(root, "bad"), os.DirFS("testdata/root/badbuild")); err != nil {
		t.Fatal(err)
	}
	cache := t.TempDir()
	r := startRunner(t, func(c *functions.Config) { c.Root, c.CacheDir = root, cache })
	server := func(id string, count uint32) *pb.Function {
		return &pb.Function{Name: name(id), Source: id, Instances: count, Contract: &pb.Function_Server{Server: &pb.ServerContract{
			Command: []string{"./server"}, Build: []string{"go", "build", "-o", "server", "."},
		}}}
	}
	catalog := server("catalog", 2)
	r.want(catalog, server("bad", 1))
	first := r.ready("catalog", 2)
	a := mustSend(t, first[0], "GET", "/catalog?q=kettle", "", "traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if a.status != 200 || !strings.Contains(a.body, "Copper kettle") || strings.Contains(a.body, "hose") || !strings.Contains(a.body, "0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("%d %s", a.status, a.body)
	}
	s := r.await("a failed build", func(s *pb.RunnerState) bool { return s.GetProblems()[name("bad")] != "" })
	for _, want := range []string{`build "go build -o server ." failed`, "exit status 1", "undefined: undefinedFunction", "main.go:4"} {
		if p := s.GetProblems()[name("bad")]; !strings.Contains(p, want) {
			t.Errorf("the problem lacks %q: %s", want, p)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "catalog", "server")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the build wrote into the source: %v", err)
	}
	// Another version of the same source is not built again.
	r.want(clone(catalog, func(f *pb.Function) { f.Timeout = durationpb.New(time.Minute) }), server("bad", 1))
	r.await("new instances", func(s *pb.RunnerState) bool {
		of := instances(s, "catalog")
		return len(of) == 2 && !slices.ContainsFunc(of, func(i *pb.Instance) bool {
			return i.GetState() != pb.InstanceState_INSTANCE_STATE_READY || i.GetId() == first[0].GetId() || i.GetId() == first[1].GetId()
		})
	})
	builds := 0
	r.logs.mu.Lock()
	for _, m := range r.logs.records {
		if m["msg"] == "built" {
			builds++
		}
	}
	r.logs.mu.Unlock()
	if builds != 1 {
		t.Errorf("%d builds of one content", builds)
	}
	good := "package main\n\nimport (\n\t\"net/http\"\n\t\"os\"\n)\n\nfunc main() { _ = http.ListenAndServe(\"127.0.0.1:\"+os.Getenv(\"PORT\"), nil) }\n"
	if err := os.WriteFile(filepath.Join(root, "bad", "main.go"), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	r.ready("bad", 1)
}
