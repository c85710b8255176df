package sandbox

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"testing"
)

// TestOwns: a connection of a sandbox's own processes, children too, is told from one
// of another process, also where means are missing.
func TestOwns(t *testing.T) {
	for name, m := range machines() {
		if m.private { // its connections do not come from here
			c := *m
			c.private = false
			m = &c
		}
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			accept := func() net.Conn {
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { c.Close() })
				return c
			}
			plan, err := m.Plan(Policy{Scratch: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			p, err := plan.Start(Command{
				ID: "test", Dir: t.TempDir(), Env: map[string]string{"PATH": os.Getenv("PATH")},
				Args: []string{"bash", "-c", fmt.Sprintf("(exec 3<>/dev/tcp/127.0.0.1/%d; read -r line <&3); true", l.Addr().(*net.TCPAddr).Port)},
			}, (*exec.Cmd).Start)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			inside := accept()
			if !p.Owns(inside) {
				t.Error("its own connection is taken for another's")
			}
			outside, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer outside.Close()
			if got := p.Owns(accept()); got == m.namespaces {
				t.Errorf("a connection of another process: %v", got)
			}
			inside.Close()
			if err := p.Ending(p.Cmd.Wait()); err != nil {
				t.Error(err)
			}
		})
	}
}
