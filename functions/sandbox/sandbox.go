// Package sandbox keeps the process of a function apart from the machine, from the
// runner and from other functions, with what the kernel offers and no container
// engine. On Linux these are:
//
//   - namespaces: own process numbers (its first process is an init of ours, so all
//     that it starts goes with it), own System V IPC and host name, and a root of its
//     own that holds only what it may see;
//   - Landlock: it may read, run and write only certain folders, and may neither
//     signal nor look into processes outside;
//   - no capabilities, no way to new privileges, and a seccomp filter that refuses
//     system calls no function needs;
//   - a uid of its own, where the runner is root;
//   - control groups: memory, processor time, processes;
//   - resource limits: size of a file, no core files.
//
// Probe finds out which of these the machine gives by trying them. A Plan says what
// will be used and what is missing with the reason: nothing is claimed that is not
// done.
//
// Between fork and exec the restrictions are set up by this very binary: a process
// with a certain argv[0] does only that (see the init function of launcher_linux.go).
package sandbox

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Level is how far a function is to be kept apart.
type Level int

const (
	// Best is all that the machine offers.
	Best Level = iota
	// None is a plain process, with limits only.
	None
	// Sandbox is files and system calls restricted and an own process view, or the
	// function is not run.
	Sandbox
)

// Names of means, as in the status of functions.
const (
	MeansLandlock   = "landlock"
	MeansSeccomp    = "seccomp"
	MeansNoCaps     = "no-capabilities"
	MeansPIDs       = "pid-namespace"
	MeansRoot       = "own-root"
	MeansIPC        = "ipc-namespace"
	MeansUTS        = "uts-namespace"
	MeansMemory     = "memory-limit"
	MeansCPU        = "cpu-limit"
	MeansPidsLimit  = "pids-limit"
	MeansFileLimit  = "file-size-limit"
	MeansTmpLimit   = "tmp-limit"
	MeansNetwork    = "network-namespace"
	MeansOutbound   = "outbound-proxy"
	MeansPort       = "port-only"
	MeansReadOnly   = "read-only-proc"
	MeansUID        = "own-uid"
	defaultFileSize = 4 << 30
	defaultTmpSize  = 512 << 20
	// defaultProcesses is so many that no function needs more, and so few that a machine
	// stands it.
	defaultProcesses = 4096
)

// Policy is what one function wants.
type Policy struct {
	Level Level
	// Read are folders and files that it may read and run besides those of the
	// system; those that do not exist are left out.
	Read []string
	// Write are folders that it may also write, besides its own temporary one.
	Write []string
	// MemoryBytes, CPUMillis (thousandths of a core), Pids (processes and threads)
	// and FileBytes (of one file) bound it; 0: no bound, of FileBytes 4 GiB.
	MemoryBytes int64
	CPUMillis   int64
	Pids        int64
	FileBytes   int64
	// TmpBytes bounds the files in the temporary folder together; 0: 512 MiB.
	TmpBytes int64
	// Network is what it may reach.
	Network Network
	// Scratch is a folder in which each instance gets one of its own.
	Scratch string
}

// Plan is how instances of one function are started.
type Plan struct {
	// Means are in force, Missing are not, each with the reason.
	Means, Missing []string

	policy  Policy
	machine *Machine
	paths   []path
	// private means a network of its own, outbound that other hosts are reached.
	private, outbound bool
	// uid means a uid of its own.
	uid bool
}

// path is a file or folder in the view of a function.
type path struct {
	Path  string
	Write bool
	// From is where it really is; "": at Path.
	From string
}

// Missing is what this machine does not offer, each with the reason.
func (m *Machine) Missing() []string { return slices.Clone(m.missing) }

// Plain is the plan of a plain process.
func Plain() *Plan {
	return &Plan{policy: Policy{Level: None}, machine: &Machine{}, Means: []string{MeansFileLimit}}
}

// Plan makes the plan of a function. Its error is for the function's author.
func (m *Machine) Plan(p Policy) (*Plan, error) {
	if p.FileBytes == 0 {
		p.FileBytes = defaultFileSize
	}
	if p.TmpBytes == 0 {
		p.TmpBytes = defaultTmpSize
	}
	plan := &Plan{policy: p, machine: m, Means: []string{MeansFileLimit}}
	plan.limits()
	if err := plan.network(); err != nil {
		return nil, err
	}
	if p.Level == None {
		return plan, nil
	}
	if p.Level == Sandbox {
		if missing := m.lacks(); len(missing) > 0 {
			return nil, fmt.Errorf("isolation.level is SANDBOX, but this machine does not offer it: %s", strings.Join(missing, "; "))
		}
	}
	for _, w := range p.Write {
		if !filepath.IsAbs(w) {
			return nil, fmt.Errorf("isolation.writable: %q is not absolute", w)
		}
		if info, err := os.Stat(w); err != nil || !info.IsDir() {
			return nil, fmt.Errorf("isolation.writable: %q is not a folder on the runner's machine", w)
		}
		plan.paths = append(plan.paths, path{Path: filepath.Clean(w), Write: true})
	}
	plan.paths = append(plan.paths, existing(p.Read)...)
	plan.Means = append(plan.Means, m.means...)
	plan.Missing = append(plan.Missing, m.missing...)
	if plan.bound() {
		plan.Means = append(plan.Means, MeansPort)
	}
	if p.Network.Mode != Outbound || !plan.private {
		plan.Means = slices.DeleteFunc(plan.Means, func(s string) bool { return s == MeansOutbound || s == MeansNetwork && !plan.private })
	}
	plan.ownUID()
	slices.Sort(plan.Means)
	return plan, nil
}

// system are the paths that programs need wherever they come from. /etc is not among
// them as a whole: it holds secrets.
var system = []string{
	"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store",
	"/etc/ssl", "/etc/pki", "/etc/ca-certificates", "/etc/ca-certificates.conf", "/etc/resolv.conf", "/etc/hosts", "/etc/host.conf",
	"/etc/nsswitch.conf", "/etc/gai.conf", "/etc/passwd", "/etc/group", "/etc/services", "/etc/protocols", "/etc/localtime", "/etc/timezone",
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/mime.types", "/etc/os-release", "/etc/fonts",
	"/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage",
}

// existing are those of some paths that are there, to be read.
func existing(list []string) (out []path) {
	for _, r := range list {
		if _, err := os.Stat(r); err == nil && filepath.IsAbs(r) {
			out = append(out, path{Path: filepath.Clean(r)})
		}
	}
	return out
}

// program finds the program as os/exec does: by PATH of the runner, or in Dir. A program is
// shown to what it runs, whoever may read it outside. So one that is named by its path
// must be among what the sandbox shows anyway, or what every user of the machine may run:
// else whoever writes a function could name, and so read, what is the runner's or another
// function's. Whether there is such a file is not told either.
func (p *Plan) program(c *Command) (string, error) {
	name := c.Args[0]
	if !strings.ContainsRune(name, '/') {
		return exec.LookPath(name)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(c.Dir, name)
	}
	if p.policy.Level == None {
		_, err := os.Stat(name)
		return name, err
	}
	shown := []string{c.Dir}
	for _, s := range p.paths {
		shown = append(shown, s.Path)
	}
	shown = append(shown, systemPaths()...)
	target, err := filepath.EvalSymlinks(name)
	if err != nil && below(name, shown) {
		return name, err // it can look for itself
	}
	if err == nil {
		if info, statErr := os.Stat(target); statErr != nil || !info.Mode().IsRegular() {
			err = fs.ErrInvalid // a folder would be shown with all that is in it
		}
	}
	if err != nil || !below(target, shown) && !forAll(target) {
		return "", fmt.Errorf("%q is not among what the function may run: put it into its source, or name a program that is on the runner's PATH or that every user of the machine may run", c.Args[0])
	}
	return name, nil
}

// below reports whether a path is one of some, or in one of them, also where these are
// reached by symbolic links. Those are looked at last: a start waits for it.
func below(path string, folders []string) bool {
	in := func(dir string) bool {
		dir = filepath.Clean(dir)
		return path == dir || dir == "/" || strings.HasPrefix(path, dir+string(filepath.Separator))
	}
	return slices.ContainsFunc(folders, in) || slices.ContainsFunc(folders, func(dir string) bool {
		target, err := filepath.EvalSymlinks(dir)
		return err == nil && in(target)
	})
}

// forAll reports whether every user may read and run a file.
func forAll(path string) bool {
	for want := os.FileMode(0o5); ; want = 0o1 {
		info, err := os.Stat(path)
		if err != nil || info.Mode()&want != want {
			return false
		}
		if path == filepath.Dir(path) {
			return true
		}
		path = filepath.Dir(path)
	}
}

// SystemPaths are the files and folders of the machine that every sandbox shows, to be
// read.
func SystemPaths() []string { return systemPaths() }

// systemPaths are system and the folders of programs on PATH.
func systemPaths() []string {
	out := slices.Clone(system)
	for _, d := range filepath.SplitList(os.Getenv("PATH")) {
		if filepath.IsAbs(d) && filepath.Clean(d) != "/" && filepath.Clean(d) != "/tmp" {
			out = append(out, d)
			if filepath.Base(d) == "shims" { // of pyenv and the like: they look for the program there
				out = append(out, filepath.Dir(d))
			}
		}
	}
	return out
}
