package sandbox

import "net/netip"

// ahead is what a launcher sets up while it waits: what is the same for all programs.
type ahead struct {
	// Own means namespaces of its own, so a root of its own. It is then the first
	// process of a pid namespace, and stays.
	Own bool
	// System are the paths that every program may see.
	System []path
	// Private means a network namespace of its own, which is to be like Net.
	Private bool
	Net     netns
	// Restrict takes the way to new privileges away.
	Restrict bool
	// PlainProc leaves /proc as it is, Capabilities those that programs may get, for
	// tests.
	PlainProc, Capabilities bool
	// UID is the uid and gid that the program is to have; 0: those of the launcher. The
	// files lockFD and mappingFD come with it.
	UID uint32
}

func (a *ahead) pack() []byte {
	var p packer
	p.flag(a.Own)
	p.paths(a.System)
	p.flag(a.Private)
	p.flag(a.Net.Outbound)
	p.flag(a.Net.IPv6)
	p.addresses(a.Net.Machine)
	p.addresses(a.Net.Resolvers)
	p.flag(a.Restrict)
	p.flag(a.PlainProc)
	p.flag(a.Capabilities)
	p.number(uint64(a.UID))
	return p.b
}

func (a *ahead) unpack(b []byte) error {
	u := &unpacker{b: b}
	*a = ahead{
		Own: u.flag(), System: u.paths(), Private: u.flag(),
		Net:      netns{Outbound: u.flag(), IPv6: u.flag(), Machine: u.addresses(), Resolvers: u.addresses()},
		Restrict: u.flag(), PlainProc: u.flag(), Capabilities: u.flag(), UID: uint32(u.number()),
	}
	return u.err
}

func (p *packer) addresses(list []netip.Addr) {
	var out []string
	for _, a := range list {
		out = append(out, a.String())
	}
	p.strings(out)
}

func (u *unpacker) addresses() (out []netip.Addr) {
	for _, s := range u.strings() {
		a, err := netip.ParseAddr(s)
		if err != nil {
			u.err = err
		}
		out = append(out, a)
	}
	return out
}

// spec is what a launcher is to run.
type spec struct {
	Program string
	Args    []string
	Env     []string
	Dir     string
	// Groups are cgroup.procs files to enter.
	Groups []string
	// File bounds the size of a file, Tmp that of all files in /tmp, in bytes.
	File, Tmp uint64
	// Processes bounds processes and threads, where they are counted alone; 0: not.
	Processes uint64
	// Paths are what it may see besides those of the system.
	Paths []path
	// Landlock is the version of Landlock's interface; 0: none.
	Landlock int
	// Ports are the ports that it may listen on; nil: all.
	Ports *portRules
	// Restrict takes capabilities and, with Seccomp, system calls away.
	Restrict, Seccomp bool
	// Capabilities leaves them, for tests.
	Capabilities bool
}

func (s *spec) pack() []byte {
	var p packer
	p.string(s.Program)
	p.strings(s.Args)
	p.strings(s.Env)
	p.string(s.Dir)
	p.strings(s.Groups)
	p.number(s.File)
	p.number(s.Tmp)
	p.number(s.Processes)
	p.paths(s.Paths)
	p.number(uint64(s.Landlock))
	p.flag(s.Restrict)
	p.flag(s.Seccomp)
	p.flag(s.Capabilities)
	p.flag(s.Ports != nil)
	if s.Ports != nil {
		p.number(uint64(s.Ports.listen))
	}
	return p.b
}

func (s *spec) unpack(b []byte) error {
	u := &unpacker{b: b}
	*s = spec{
		Program: u.string(), Args: u.strings(), Env: u.strings(), Dir: u.string(), Groups: u.strings(), File: u.number(), Tmp: u.number(), Processes: u.number(),
		Paths: u.paths(), Landlock: int(u.number()), Restrict: u.flag(), Seccomp: u.flag(), Capabilities: u.flag(),
	}
	if u.flag() {
		s.Ports = &portRules{listen: uint16(u.number())}
	}
	return u.err
}
