// Package redistest starts a real Redis server for tests: on a free port of
// 127.0.0.1, without persistence, gone when the test ends.
package redistest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/internal/ports/porttest"
	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// startTimeout is for a loaded machine; the usual start takes 10 ms.
const startTimeout = 30 * time.Second

// Server is a Redis server that can be killed and started again.
type Server struct {
	// Address is host:port; it stays the same over restarts.
	Address string

	path, dir string
	args      []string
	cmd       *exec.Cmd
	exited    chan struct{}
}

// Start starts a server and returns when it answers. Further arguments are those
// of redis-server, such as "--cluster-enabled", "yes".
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	path, err := toolbox.Redis(t.Context(), toolbox.Options{Progress: os.Stderr})
	if err != nil {
		t.Fatal("redistest: ", err)
	}
	s := &Server{path: path, dir: t.TempDir(), args: args}
	t.Cleanup(s.Kill)
	// Between finding a free port and taking it somebody else may take it.
	for attempt := 1; ; attempt++ {
		s.Address = porttest.Address(t)
		if err = s.start(); err == nil {
			return s
		}
		if attempt == 5 {
			t.Fatal("redistest: ", err)
		}
	}
}

// URL returns the redis:// URL of the server.
func (s *Server) URL() string { return "redis://" + s.Address + "/0" }

// Pid returns the process id.
func (s *Server) Pid() int { return s.cmd.Process.Pid }

// Kill ends the server as kill -9 does and returns when it is gone. What it held
// is lost.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	_ = launch.Signal(s.cmd, syscall.SIGKILL)
	<-s.exited
	s.cmd = nil
}

// Pause stops the server's process: it keeps its connections and answers nothing.
func (s *Server) Pause(t testing.TB) {
	t.Helper()
	if err := launch.Signal(s.cmd, syscall.SIGSTOP); err != nil {
		t.Fatal("redistest: ", err)
	}
}

// Resume continues a paused server.
func (s *Server) Resume(t testing.TB) {
	t.Helper()
	if err := launch.Signal(s.cmd, syscall.SIGCONT); err != nil {
		t.Fatal("redistest: ", err)
	}
}

// Restart starts the server again, empty, on the same port.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		t.Fatal("redistest: ", err)
	}
}

// Do sends one command and returns the reply as Redis writes it, without the line
// end. It fails the test on an error reply.
func (s *Server) Do(t testing.TB, args ...string) string {
	t.Helper()
	line, err := s.do(args...)
	if err != nil {
		t.Fatalf("redistest: %s: %v", strings.Join(args, " "), err)
	}
	return line
}

func (s *Server) do(args ...string) (string, error) {
	c, err := net.DialTimeout("tcp", s.Address, time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(a), a)
	}
	if _, err := c.Write([]byte(b.String())); err != nil {
		return "", err
	}
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimRight(line, "\r\n")
	if strings.HasPrefix(line, "-") {
		return "", errors.New(line[1:])
	}
	if n, ok := strings.CutPrefix(line, "$"); ok {
		size, err := strconv.Atoi(n)
		if err != nil || size < 0 {
			return "", err // -1: there is none
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(r, body); err != nil {
			return "", err
		}
		return string(body), nil
	}
	return line, nil
}

func (s *Server) start() error {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		return err
	}
	logFile := filepath.Join(s.dir, "redis.log")
	args := append([]string{
		"--bind", host, "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no",
		"--daemonize", "no", "--logfile", logFile,
	}, s.args...)
	s.cmd = exec.Command(s.path, args...)
	if err := launch.Start(s.cmd); err != nil {
		s.cmd = nil
		return err
	}
	exited, cmd := make(chan struct{}), s.cmd
	s.exited = exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	deadline := time.Now().Add(startTimeout)
	for {
		if pong, err := s.do("PING"); err == nil && pong == "+PONG" {
			return nil
		}
		select {
		case <-exited:
			log, _ := os.ReadFile(logFile)
			s.cmd = nil
			return fmt.Errorf("redis-server ended:\n%s", log)
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.Kill()
			return fmt.Errorf("redis-server does not answer within %s", startTimeout)
		}
	}
}
