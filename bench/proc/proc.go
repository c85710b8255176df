// Package proc reads what a process costs, for benchmarks: CPU time and memory
// from Linux's /proc.
package proc

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// CPU is the CPU time of all threads of a process so far, from the scheduler's own
// accounting (nanoseconds, unlike the ticks of /proc/PID/stat).
func CPU(pid int) (time.Duration, error) {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, t := range tasks {
		d, err := threadCPU(pid, t.Name())
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // the thread has ended
		}
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// MainCPU is that of the first thread alone: Envoy's main thread does the work of
// the configuration, its workers that of the requests.
func MainCPU(pid int) (time.Duration, error) { return threadCPU(pid, strconv.Itoa(pid)) }

func threadCPU(pid int, tid string) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, tid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(raw))
	if len(f) == 0 {
		return 0, fmt.Errorf("schedstat of thread %s is empty", tid)
	}
	ns, err := strconv.ParseInt(f[0], 10, 64)
	return time.Duration(ns), err
}

// Memory is what a process holds resident, in MiB: all, and without pages of files
// (its binary, the store's file).
func Memory(pid int) (all, anonymous float64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	found := 0
	for line := range strings.Lines(string(raw)) {
		for prefix, to := range map[string]*float64{"VmRSS:": &all, "RssAnon:": &anonymous} {
			if v, ok := strings.CutPrefix(line, prefix); ok {
				if _, err := fmt.Sscan(v, to); err != nil {
					return 0, 0, err
				}
				*to /= 1024
				found++
			}
		}
	}
	if found != 2 {
		return 0, 0, fmt.Errorf("process %d has no VmRSS and RssAnon", pid)
	}
	return all, anonymous, nil
}
