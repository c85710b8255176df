package ledger_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/penstock-gateway/penstock/xds"
	"github.com/penstock-gateway/penstock/xds/ledger"
)

var update = flag.Bool("update", false, "rewrite testdata; read the diff before you commit it")

// TestScripts runs testdata/*.txt: lines that begin in the first column are
// commands, indented lines are what the ledger did. After each command
// everything that the ledger wants to send is taken.
//
//	update REV type/name@version[:ref,ref] …   the next generation; ~ref: on demand, ^ref: follows
//	connect                                    a new stream
//	restart                                    a new control plane, and a new stream
//	ask type [name …]                          subscribe; no name is all
//	resume type name@version … [| name …]      first request of a stream with versions, and names
//	drop type name …                           unsubscribe
//	ack type · nack type why                   answer what was sent last of the type
//	tick duration                              time passes
//	quarantine                                 what was refused last; kept over a restart
//	lift type/name                             another try
//	status · serves REV                        what is said of the proxy
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScript(string(b))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(b) {
				t.Errorf("%s differs; the run gives:\n%s", file, got)
			}
		})
	}
}

type script struct {
	out   strings.Builder
	now   time.Time
	gen   *xds.Generation
	table *ledger.Table
	proxy *ledger.Proxy
	nonce map[xds.Type]string
	// last is what was refused last, and bad what is in quarantine.
	last ledger.Outcome
	bad  map[xds.Ref]*ledger.Quarantine
}

func runScript(text string) string {
	s := &script{now: time.Unix(1_000_000, 0).UTC(), table: ledger.NewTable(), nonce: map[xds.Type]string{}}
	s.connect(nil)
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "  "): // output of the run before
		case strings.TrimSpace(line) == "" || line[0] == '#':
			s.out.WriteString(line)
		default:
			s.out.WriteString(line)
			s.run(strings.Fields(line))
			s.drain()
		}
	}
	return s.out.String()
}

func (s *script) printf(format string, args ...any) { fmt.Fprintf(&s.out, "  "+format+"\n", args...) }

func (s *script) connect(m ledger.Memory) {
	s.proxy = s.table.Attach(ledger.Options{SilentAfter: 5 * time.Second, Grace: time.Second, Memory: m}, s.now)
}

func (s *script) run(words []string) {
	args := words[1:]
	switch words[0] {
	case "update":
		s.gen = parseGeneration(args)
		s.printf("%d changes", s.table.Update(s.gen, s.now))
	case "connect":
		s.connect(s.proxy.Detach())
	case "restart":
		s.table = ledger.NewTable()
		s.table.Quarantine(s.bad)
		s.table.Update(s.gen, s.now)
		s.connect(nil)
	case "ask":
		s.handle(ledger.Request{Type: typeNamed(args[0]), Subscribe: args[1:]})
	case "resume":
		r := ledger.Request{Type: typeNamed(args[0]), Initial: map[string]string{}}
		for i, a := range args[1:] {
			if a == "|" {
				r.Subscribe = args[i+2:]
				break
			}
			name, version, _ := strings.Cut(a, "@")
			r.Initial[name] = version
		}
		s.handle(r)
	case "drop":
		s.handle(ledger.Request{Type: typeNamed(args[0]), Unsubscribe: args[1:]})
	case "ack":
		s.handle(ledger.Request{Type: typeNamed(args[0]), Nonce: s.nonce[typeNamed(args[0])]})
	case "nack":
		s.handle(ledger.Request{
			Type: typeNamed(args[0]), Nonce: s.nonce[typeNamed(args[0])], Refused: true, Detail: strings.Join(args[1:], " "),
		})
	case "quarantine":
		c := s.last.Culprit
		s.bad = map[xds.Ref]*ledger.Quarantine{{Type: c.Resource.Type, Name: c.Resource.Name}: {
			Refused: map[string]string{c.Resource.Version: s.last.Detail}, Good: c.Good, GoodRevision: c.GoodRevision,
		}}
		s.table.Quarantine(s.bad)
	case "lift":
		s.bad = nil
		s.table.Lift(parseRef(args[0]))
	case "tick":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			panic(err)
		}
		s.now = s.now.Add(d)
	case "status":
		st := s.proxy.Status(s.now)
		s.printf("%s, revision %d", st.State, st.Revision)
		s.problems(st.Problems)
	case "serves":
		var n int64
		if _, err := fmt.Sscan(args[0], &n); err != nil {
			panic(err) // the script is wrong
		}
		ok, problems := s.proxy.Serves(n, s.now)
		s.printf("%v", ok)
		s.problems(problems)
	default:
		panic("unknown command " + words[0])
	}
}

func (s *script) problems(all []ledger.Problem) {
	for _, p := range all {
		s.printf("%s %s: %s", p.State, short(p.Ref), p.Detail)
	}
}

func (s *script) handle(r ledger.Request) {
	out, err := s.proxy.Handle(r, s.now)
	if err != nil {
		s.printf("error: %v", err)
	}
	if out.Culprit != nil {
		s.last = out
	}
	for _, ref := range out.Accepted {
		s.printf("accepted %s", short(ref))
	}
	for _, ref := range out.Absent {
		s.printf("absent %s", short(ref))
	}
	if out.Alone && len(out.Refused) == 1 {
		s.printf("refused %s: %s", short(out.Refused[0]), out.Detail)
	} else if len(out.Refused) > 0 {
		s.printf("refused one of %d: %s", len(out.Refused), out.Detail)
	}
}

func (s *script) drain() {
	for r := s.proxy.Next(s.now); r != nil; r = s.proxy.Next(s.now) {
		s.nonce[r.Type] = r.Nonce
		line := "sent " + shortName(r.Type)
		for _, res := range r.Resources {
			line += " " + res.Name + "@" + res.Version
		}
		for _, n := range r.Removed {
			line += " -" + n
		}
		s.printf("%s", line)
	}
}

var shortNames = map[string]xds.Type{
	"cluster": xds.Cluster, "endpoint": xds.Endpoint, "secret": xds.Secret, "extension": xds.ExtensionConfig,
	"listener": xds.Listener, "scope": xds.Scope, "route": xds.Route,
}

func typeNamed(s string) xds.Type {
	t, ok := shortNames[s]
	if !ok {
		panic("unknown type " + s)
	}
	return t
}

func shortName(t xds.Type) string {
	for s, u := range shortNames {
		if t == u {
			return s
		}
	}
	return string(t)
}

func short(r xds.Ref) string {
	if r.Type == "" {
		return "-"
	}
	return shortName(r.Type) + "/" + r.Name
}

func parseGeneration(args []string) *xds.Generation {
	g := &xds.Generation{}
	if _, err := fmt.Sscan(args[0], &g.Revision); err != nil {
		panic(err) // the script is wrong
	}
	for _, a := range args[1:] {
		id, refs, _ := strings.Cut(a, ":")
		ref := parseRef(id)
		name, version, ok := strings.Cut(ref.Name, "@")
		if !ok {
			panic("no version in " + a)
		}
		res := &xds.Resource{Type: ref.Type, Name: name, Version: version, Body: &anypb.Any{}}
		if refs != "" {
			for r := range strings.SplitSeq(refs, ",") {
				if after, ok := strings.CutPrefix(r, "^"); ok {
					res.After = append(res.After, parseRef(after))
					continue
				}
				lazy := strings.HasPrefix(r, "~")
				res.Lazy = res.Lazy || lazy
				res.Refs = append(res.Refs, parseRef(strings.TrimPrefix(r, "~")))
			}
		}
		g.Set(res)
	}
	return g
}

func parseRef(s string) xds.Ref {
	t, name, ok := strings.Cut(s, "/")
	if !ok {
		panic("no type in " + s)
	}
	return xds.Ref{Type: typeNamed(t), Name: name}
}
