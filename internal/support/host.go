package support

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Host is what a machine and the limits of this process are.
type Host struct {
	System    string            `json:"system"`
	Processor int               `json:"processors"`
	Root      bool              `json:"root"`
	Facts     map[string]string `json:"facts"`
	// Variables are the names of the PENSTOCK_ variables that are set; their values are
	// not here.
	Variables []string `json:"variables"`
}

// hostFacts are the files of Linux that tell what matters. One that is missing is left out.
var hostFacts = map[string]string{
	"kernel":                       "/proc/sys/kernel/osrelease",
	"load":                         "/proc/loadavg",
	"uptime, seconds":              "/proc/uptime",
	"user namespaces":              "/proc/sys/user/max_user_namespaces",
	"unprivileged user namespaces": "/proc/sys/kernel/unprivileged_userns_clone",
	"AppArmor restricts them":      "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
	"security modules":             "/sys/kernel/security/lsm",
	"control groups":               "/sys/fs/cgroup/cgroup.controllers",
	"open files, all":              "/proc/sys/fs/file-nr",
	"local ports":                  "/proc/sys/net/ipv4/ip_local_port_range",
	"listen backlog":               "/proc/sys/net/core/somaxconn",
	"limits":                       "/proc/self/limits",
}

// ThisHost describes the machine.
func ThisHost() Host {
	h := Host{System: runtime.GOOS + "/" + runtime.GOARCH, Processor: runtime.NumCPU(), Root: os.Geteuid() == 0, Facts: map[string]string{}}
	for name, file := range hostFacts {
		h.fact(name, file)
	}
	h.lines("memory", "/proc/meminfo", "MemTotal:", "MemAvailable:", "SwapFree:")
	h.lines("distribution", "/etc/os-release", "PRETTY_NAME=")
	if own, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range bytes.Lines(own) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::"); ok {
				for _, name := range []string{"memory.max", "memory.current", "pids.max", "cpu.max"} {
					h.fact("control group "+name, filepath.Join("/sys/fs/cgroup", path, name))
				}
			}
		}
	}
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "PENSTOCK_") {
			h.Variables = append(h.Variables, name)
		}
	}
	slices.Sort(h.Variables)
	return h
}

func (h *Host) fact(name, file string) {
	if b, err := os.ReadFile(file); err == nil {
		h.Facts[name] = strings.TrimSpace(string(b))
	}
}

// lines keeps of a file those lines that begin with one of the prefixes.
func (h *Host) lines(name, file string, prefixes ...string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	var kept []string
	for line := range strings.Lines(string(b)) {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			kept = append(kept, strings.Join(strings.Fields(line), " "))
		}
	}
	h.Facts[name] = strings.Join(kept, "; ")
}
