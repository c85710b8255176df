package shadow

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// nobody is the user that owns nothing, by convention.
const nobody = 65534

// sandbox is a way to shut the process in.
type sandbox struct {
	name string
	// apply sets up a command whose files are in a folder.
	apply func(cmd *exec.Cmd, dir string) error
}

// sandboxes are what can be tried, the strongest first. A network namespace of its
// own has no interface that is up, so that nothing can be reached at all.
func sandboxes() []sandbox {
	plain := sandbox{"no isolation: the network and the user of the control plane", func(*exec.Cmd, string) error { return nil }}
	if os.Geteuid() == 0 {
		return []sandbox{
			{"own network namespace, user nobody", func(cmd *exec.Cmd, dir string) error {
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				return give(dir)
			}},
			{"own network namespace, user root", func(cmd *exec.Cmd, _ string) error {
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
				return nil
			}},
			{"user nobody, the network of the control plane", func(cmd *exec.Cmd, dir string) error {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
				return give(dir)
			}},
			plain,
		}
	}
	return []sandbox{
		{"own network and user namespace", func(cmd *exec.Cmd, _ string) error {
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
			}
			return nil
		}},
		plain,
	}
}

// give makes a folder and its files nobody's.
func give(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	for _, f := range append(files, dir) {
		if err := os.Chown(f, nobody, nobody); err != nil {
			return err
		}
	}
	return nil
}

// bounds of the process: no core, 4 GiB of data (twice what the overload manager
// allows), 64 MiB of a file, 4096 open files. Another user's process can be bounded
// only from within, before it becomes Envoy.
const bounds = `ulimit -c 0; ulimit -d 4194304; ulimit -f 131072; ulimit -n 4096; exec "$@"`

const shell = "/bin/sh"

// limited is a command that bounds itself, where there is a shell for that.
func limited(program string, args ...string) *exec.Cmd {
	if _, err := os.Stat(shell); err != nil {
		return exec.Command(program, args...)
	}
	return exec.Command(shell, append([]string{"-c", bounds, "sh", program}, args...)...)
}

// limits says how a process is bounded.
func limits(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return "limits unknown: " + err.Error()
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		for _, name := range []string{"Max data size", "Max core file size", "Max file size", "Max open files"} {
			if rest, ok := strings.CutPrefix(line, name+" "); ok {
				out = append(out, strings.ToLower(name)+" "+strings.Fields(rest)[1])
			}
		}
	}
	return strings.Join(out, ", ")
}
