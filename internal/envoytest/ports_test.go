package envoytest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const portsEnv = "ENVOYTEST_PORTS"

// TestFreePort: tests of several processes at once are given different ports.
func TestFreePort(t *testing.T) {
	const processes, each = 4, 500
	if os.Getenv(portsEnv) != "" {
		for range each {
			fmt.Println("port", FreePort(t))
		}
		fmt.Println("done")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the others have theirs
		return
	}
	owner := map[string]int{}
	for i := range processes {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFreePort$")
		cmd.Env = append(os.Environ(), portsEnv+"=1")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			in.Close()
			_ = cmd.Wait()
		})
		n := 0
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "done"; {
			port, ok := strings.CutPrefix(lines.Text(), "port ")
			if !ok {
				continue
			}
			n++
			if other, twice := owner[port]; twice {
				t.Errorf("port %s was given to process %d and process %d", port, other, i)
			}
			owner[port] = i
		}
		if n != each {
			t.Errorf("process %d was given %d ports, want %d", i, n, each)
		}
	}
}
