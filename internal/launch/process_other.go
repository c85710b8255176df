//go:build !linux

package launch

import (
	"os/exec"
	"strconv"
	"strings"
)

func ps(args ...string) ([]string, error) {
	out, err := exec.Command("ps", args...).Output()
	return strings.Split(strings.TrimSpace(string(out)), "\n"), err
}

func startTime(pid int) (string, error) {
	lines, err := ps("-o", "lstart=", "-p", strconv.Itoa(pid))
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(lines[0]), nil
}

// Exiting reports whether a process has ended.
func Exiting(pid int) bool {
	_, err := Identify(pid)
	return err != nil
}

// Descendants returns the children of a process, their children, and so on.
func Descendants(pid int) []ID {
	lines, err := ps("-A", "-o", "pid=,ppid=")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, line := range lines {
		f := strings.Fields(line)
		if len(f) != 2 {
			continue
		}
		child, err1 := strconv.Atoi(f[0])
		parent, err2 := strconv.Atoi(f[1])
		if err1 == nil && err2 == nil {
			children[parent] = append(children[parent], child)
		}
	}
	var out []ID
	for queue := []int{pid}; len(queue) > 0; queue = queue[1:] {
		for _, c := range children[queue[0]] {
			if id, err := Identify(c); err == nil {
				out = append(out, id)
			}
			queue = append(queue, c)
		}
	}
	return out
}

func stopped(int) bool { return false }
