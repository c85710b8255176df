package sandbox

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Parts of /proc that are not of processes, as container engines treat them (runc's
// maskedPaths and readonlyPaths, and some more files that tell of the kernel or of the
// machine's memory): a process of root, without any capability, may write some of them.
var (
	procReadOnly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/proc/mtrr"}
	procMasked   = []string{
		"/proc/acpi", "/proc/asound", "/proc/config.gz", "/proc/driver", "/proc/dynamic_debug", "/proc/iomem", "/proc/ioports", "/proc/kallsyms",
		"/proc/kcore", "/proc/key-users", "/proc/keys", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
		"/proc/latency_stats", "/proc/modules", "/proc/pagetypeinfo", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo",
		"/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo",
	}
)

// proc mounts /proc of the own processes.
func (r *rootBuilder) proc(plain bool) error {
	if err := os.MkdirAll(r.at("/proc"), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("proc", r.at("/proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if plain {
		return nil
	}
	for _, p := range procReadOnly {
		if err := r.overlay(p, r.at(p)); err != nil {
			return err
		}
	}
	for _, p := range procMasked {
		info, err := os.Stat(r.at(p))
		switch {
		case err != nil: // this kernel does not have it
		case info.IsDir():
			if err := unix.Mount("tmpfs", r.at(p), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=555,size=4k,nr_inodes=2"); err != nil {
				return fmt.Errorf("mask %s: %w", p, err)
			}
		default:
			if err := r.overlay(p, r.at("/dev/null")); err != nil {
				return err
			}
		}
	}
	return nil
}

// overlay puts something read-only over a path, if that exists.
func (r *rootBuilder) overlay(p, from string) error {
	err := unix.Mount(from, r.at(p), "", unix.MS_BIND|unix.MS_REC, "")
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}
		err = unix.MountSetattr(unix.AT_FDCWD, r.at(p), unix.AT_RECURSIVE, attr)
	}
	if err != nil {
		return fmt.Errorf("make %s read-only: %w", p, err)
	}
	return nil
}
