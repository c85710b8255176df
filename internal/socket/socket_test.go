package socket_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/internal/socket/sockettest"
)

// connectEnv makes this test binary a process that connects to a socket and tells the
// error number.
const connectEnv = "SOCKET_TEST_CONNECT"

func TestMain(m *testing.M) {
	if path := os.Getenv(connectEnv); path != "" {
		c, err := net.Dial("unix", path)
		var no syscall.Errno
		if errors.As(err, &no) {
			os.Exit(int(no))
		}
		if err != nil {
			os.Exit(255)
		}
		c.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// connect is the error of another process, of another user where this test may start
// one (as root).
func connect(t *testing.T, path string, credential *syscall.Credential) syscall.Errno {
	t.Helper()
	cmd := exec.Command(sockettest.Program(t))
	cmd.Env = append(os.Environ(), connectEnv+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return syscall.Errno(exit.ExitCode())
	} else if err != nil {
		t.Fatal(err)
	}
	return 0
}

// TestOwnerOnly: the socket's owner gets in, another user does not, neither by the
// folder nor, were that open, by the socket itself.
func TestOwnerOnly(t *testing.T) {
	dir, err := os.MkdirTemp("", "socket-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "run", "a.sock")
	l, err := socket.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if no := connect(t, path, nil); no != 0 {
		t.Errorf("the owner: %v", no)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	if os.Geteuid() != 0 {
		return // only root starts processes of others; the modes say the same
	}
	other := &syscall.Credential{Uid: 65534, Gid: 65534}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if no := connect(t, path, other); no != syscall.EACCES {
		t.Errorf("another user: %v", no)
	}
	if err := os.Chmod(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if no := connect(t, path, other); no != syscall.EACCES {
		t.Errorf("another user who may enter the folder: %v", no)
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "a.sock")
	l, err := socket.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second one: %v", err)
	}
	// As a killed process leaves it.
	l.SetUnlinkOnClose(false)
	l.Close()
	if l, err = socket.Listen(t.Context(), path); err != nil {
		t.Errorf("in place of one that was left: %v", err)
	} else {
		l.Close()
	}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o755), os.Chmod(open, 0o755)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(open, "a.sock")); err == nil || !strings.Contains(err.Error(), "chmod 0700 "+open) {
		t.Errorf("in a folder that others enter: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "run"), link); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(link, "a.sock")); err == nil {
		t.Error("a folder that is a symbolic link was taken")
	}
}

func TestPath(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	path, err := socket.Path(long, "a.sock")
	if err != nil || len(path) > 107 || filepath.Base(path) != "a.sock" {
		t.Errorf("%q, %v", path, err)
	}
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(path)) })
	if again, err := socket.Path(long, "a.sock"); again != path || err != nil {
		t.Errorf("the second time %q, %v", again, err)
	}
	for address, want := range map[string]string{
		"unix:a.sock": "absolute", "/a.sock": "does not begin", "unix:/" + strings.Repeat("x", 107): "108 bytes", "unix:/run/a.sock": "",
	} {
		if err := socket.Check(address); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", address, err)
		}
	}
}
