package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// bootID distinguishes start times, which Linux counts from the boot.
var bootID = sync.OnceValue(func() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

// stat returns the fields of /proc/PID/stat after the command, whose name may
// hold spaces and brackets (proc_pid_stat(5)): [0] is the state, [1] the parent,
// [19] the start time.
func stat(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	end := strings.LastIndexByte(string(b), ')')
	fields := strings.Fields(string(b[end+1:]))
	if end < 0 || len(fields) < 20 {
		return nil, fmt.Errorf("/proc/%d/stat is not understood", pid)
	}
	return fields, nil
}

// stopped reports whether a process is stopped: by SIGSTOP, or by whoever traces it.
func stopped(pid int) bool {
	f, err := stat(pid)
	return err == nil && (f[0] == "T" || f[0] == "t")
}

func startTime(pid int) (string, error) {
	f, err := stat(pid)
	if err != nil {
		return "", err
	}
	if f[0] == "Z" || f[0] == "X" {
		return "", errors.New("the process ended")
	}
	return bootID() + "/" + f[19], nil
}

// exiting is PF_EXITING of the kernel's include/linux/sched.h, in the flags of
// /proc/PID/stat.
const exiting = 0x4

// Exiting reports whether a process is about to end, or has ended. The kernel marks it
// before it closes the files of the process, so that who sees a connection of it break
// can ask whether that is why.
func Exiting(pid int) bool {
	f, err := stat(pid)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return true
	}
	if err != nil {
		return false
	}
	flags, _ := strconv.ParseUint(f[6], 10, 64)
	return flags&exiting != 0
}

// Descendants returns the children of a process, their children, and so on.
func Descendants(pid int) []ID {
	children := map[int][]int{}
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range paths {
		n, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			continue
		}
		f, err := stat(n)
		if err != nil {
			continue // it ended meanwhile
		}
		if parent, err := strconv.Atoi(f[1]); err == nil {
			children[parent] = append(children[parent], n)
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
