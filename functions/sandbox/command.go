package sandbox

import (
	"maps"
	"os"
	"slices"
	"syscall"
)

// Command is what to start.
type Command struct {
	// ID is of the instance.
	ID   string
	Args []string
	// Dir is the working directory, absolute.
	Dir string
	// Env is the environment by name; HOME and TMPDIR are the sandbox's where Own
	// does not have them.
	Env map[string]string
	// Own are names of Env that the function has set itself.
	Own            map[string]bool
	Stdout, Stderr *os.File
}

// environment is Env with what a sandbox sets.
func (c *Command) environment(sandbox map[string]string) []string {
	env := map[string]string{}
	maps.Copy(env, c.Env)
	for k, v := range sandbox {
		if !c.Own[k] {
			env[k] = v
		}
	}
	out := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		out = append(out, k+"="+env[k])
	}
	return out
}

// session gives a process a session of its own.
func session() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
