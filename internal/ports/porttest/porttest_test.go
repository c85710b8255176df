package porttest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const portsEnv = "PORTTEST_PORTS"

// TestFree: tests of several processes at once are given different ports.
func TestFree(t *testing.T) {
	const processes, each = 4, 500
	if os.Getenv(portsEnv) != "" {
		for range each {
			fmt.Println("port", Free(t))
		}
		fmt.Println("done")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the others have theirs
		return
	}
	owner := map[string]int{}
	for i := range processes {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFree$")
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

// TestRange: no port comes twice, and none is one that the kernel gives to others.
func TestRange(t *testing.T) {
	seen := map[int]bool{}
	for range 200 {
		p := Free(t)
		if seen[p] || p < 16000 || p > 31999 {
			t.Fatalf("port %d: seen before: %v", p, seen[p])
		}
		seen[p] = true
	}
}
