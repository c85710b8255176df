package functions

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"

	"github.com/penstock-gateway/penstock/functions/contract"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// machine is what this machine offers to keep functions apart; it is tried once.
var machine = sync.OnceValue(sandbox.Probe)

// scratchDir holds the temporary folders of instances.
func scratchDir(c Config) string { return filepath.Join(c.CacheDir, "run") }

// isolate plans how instances of a function are kept apart. read is what they need to
// see besides the system.
func (m *manager) isolate(f *pb.Function, read []string) (*sandbox.Plan, error) {
	i, r := f.GetIsolation(), f.GetResources()
	p := sandbox.Policy{
		Read: slices.DeleteFunc(read, func(s string) bool { return s == "" }), Write: i.GetWritable(), TmpBytes: int64(r.GetTmpMib()) << 20,
		MemoryBytes: int64(r.GetMemoryMib()) << 20, CPUMillis: int64(r.GetCpuMillis()), Pids: int64(r.GetPids()), FileBytes: int64(r.GetFileMib()) << 20,
		Scratch: scratchDir(m.config),
	}
	var err error
	if p.Level, err = levelOf(f); err != nil {
		return nil, err
	}
	if p.Network, err = m.network(f); err != nil {
		return nil, err
	}
	return m.config.machine.Plan(p)
}

// network is what a function reaches. What is refused is in its log.
func (m *manager) network(f *pb.Function) (n sandbox.Network, err error) {
	switch i := f.GetIsolation(); i.GetNetwork() {
	case pb.NetworkAccess_NETWORK_ACCESS_UNSPECIFIED, pb.NetworkAccess_NETWORK_ACCESS_OUTBOUND:
	case pb.NetworkAccess_NETWORK_ACCESS_NONE:
		n.Mode = sandbox.NoNetwork
	case pb.NetworkAccess_NETWORK_ACCESS_HOST:
		n.Mode = sandbox.HostNetwork
	default:
		return n, fmt.Errorf("isolation.network %s is not one that this runner knows", i.GetNetwork())
	}
	if n.Allow, err = sandbox.ParseAllow(f.GetIsolation().GetNetworkAllow()); err != nil {
		return n, fmt.Errorf("isolation.network_allow: %w", err)
	}
	n.Refused = func(to netip.AddrPort, why string) {
		m.logs.say(f.GetName(), "", fmt.Sprintf("a connection to %s was refused: %s", to, why))
	}
	return n, nil
}

// levelOf is the level that a function asks for.
func levelOf(f *pb.Function) (sandbox.Level, error) {
	switch l := f.GetIsolation().GetLevel(); l {
	case pb.IsolationLevel_ISOLATION_LEVEL_UNSPECIFIED, pb.IsolationLevel_ISOLATION_LEVEL_BEST:
		return sandbox.Best, nil
	case pb.IsolationLevel_ISOLATION_LEVEL_NONE:
		return sandbox.None, nil
	case pb.IsolationLevel_ISOLATION_LEVEL_SANDBOX:
		return sandbox.Sandbox, nil
	default:
		return 0, fmt.Errorf("isolation.level %s is not one that this runner knows", l)
	}
}

// buildLevel is that of what is run to build a function: what the machine offers, also
// where the function itself asks for nothing.
func buildLevel(f *pb.Function) (sandbox.Level, error) {
	l, err := levelOf(f)
	if l == sandbox.None {
		l = sandbox.Best
	}
	return l, err
}

// interpreter is a program that runs functions, as it says itself: a name on PATH may
// be a script that looks for it (pyenv, nvm), which costs every start time and needs
// files of its own.
type interpreter struct {
	path string
	// read are the folders that it is in.
	read []string
	err  error
}

// pythonFacts are the program and the folders of its libraries, a line each; of a
// virtual environment also those that it is made from.
const pythonFacts = `import sys, os
for p in (sys.executable, sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.dirname(os.path.realpath(sys.executable))): print(p)`

const nodeFacts = `process.execPath + "\n" + require("path").dirname(require("path").dirname(process.execPath))`

// find asks an interpreter where it is. One that cannot tell is taken as it is
// configured: the error comes when it is started.
func (m *manager) find(program string, args ...string) *interpreter {
	i := &interpreter{path: program}
	out, err := m.versionOf(m.builder.ctx, program, args...)
	lines := strings.Split(out, "\n")
	if err != nil || !filepath.IsAbs(lines[0]) {
		i.err = cmp.Or(err, fmt.Errorf("%s does not tell where it is: %.200q", program, out))
		m.config.Logger.Warn("the interpreter of functions is not understood", "program", program, "error", i.err)
		return i
	}
	i.path = lines[0]
	for _, l := range lines[1:] {
		if l = filepath.Clean(l); filepath.IsAbs(l) && l != "/" && !slices.Contains(i.read, l) {
			i.read = append(i.read, l)
		}
	}
	return i
}

// bringers are the interpreters; each is asked when the first function needs it.
type bringers struct{ python, node func() *interpreter }

func (m *manager) bring() bringers {
	return bringers{
		python: sync.OnceValue(func() *interpreter { return m.find(m.config.Python, "-c", pythonFacts) }),
		node:   sync.OnceValue(func() *interpreter { return m.find(m.config.Node, "-p", nodeFacts) }),
	}
}

// needs are the paths that the processes of a function have to see.
func (m *manager) needs(ctx context.Context, f *pb.Function) []string {
	var out []string
	if tool := executions[contract.Of(f).Name].tool; tool != nil {
		out = append(out, installed(ctx, tool(m, contract.LanguageOf(f))))
	}
	switch contract.LanguageOf(f) {
	case contract.Python:
		out = append(out, m.interpreters.python().read...)
	case contract.Node:
		out = append(out, m.interpreters.node().read...)
	}
	return out
}

// installed is where a runtime is; its error has been the contract's.
func installed(ctx context.Context, find func(context.Context) (string, error)) string {
	if find == nil {
		return ""
	}
	path, err := find(ctx)
	if err != nil {
		return ""
	}
	return path
}
