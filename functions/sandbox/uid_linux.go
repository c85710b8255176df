package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// uidLocks holds a file for each uid that was ever in use, which is locked as long as
// it is: all runners of the machine go by it.
const uidLocks = "/run/penstock-uids"

// uids hands out uids of a range.
type uids struct {
	r     UIDRange
	locks string

	mu sync.Mutex
	// used are those that this process has handed out.
	used map[uint32]bool
	// maps are user namespaces by uid, for idmapped mounts. They are kept, since the
	// lowest free uid is taken each time.
	maps map[uint32]*os.File
}

// identity is a uid, and the gid of the same number, that one launcher has.
type identity struct {
	uid uint32
	// lock is open in the launcher, too: its init is the last of an instance that the
	// kernel ends, so the lock outlives a runner that was killed, but not the instance.
	lock *os.File
	// mapping is the user namespace that maps root to the uid.
	mapping *os.File
	from    *uids
}

// newUIDs returns an error where the range cannot be used on this machine.
func newUIDs(r UIDRange) (*uids, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	u := &uids{r: r.withDefaults(), locks: uidLocks, used: map[uint32]bool{}, maps: map[uint32]*os.File{}}
	if os.Geteuid() != 0 {
		return nil, errors.New("only root may give processes another uid")
	}
	if err := privileged(); err != nil {
		return nil, err
	}
	if err := u.foreign(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(u.locks, 0o700); err != nil {
		return nil, fmt.Errorf("the folder for locks of uids: %w", err)
	}
	return u, nil
}

// privileged returns an error where this process, though root, has not got what it
// takes to start processes of another uid, and to end and observe them.
func privileged() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	for _, c := range []struct {
		name string
		bit  uint
	}{
		{"CAP_SETUID", unix.CAP_SETUID}, {"CAP_SETGID", unix.CAP_SETGID}, {"CAP_KILL", unix.CAP_KILL}, {"CAP_CHOWN", unix.CAP_CHOWN},
		{"CAP_SYS_PTRACE", unix.CAP_SYS_PTRACE}, {"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN}, {"CAP_DAC_OVERRIDE", unix.CAP_DAC_OVERRIDE},
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			return fmt.Errorf("the runner has not got %s", c.name)
		}
	}
	return nil
}

// foreign returns an error where ids of the range belong to somebody, or are not
// there in the runner's own user namespace.
func (u *uids) foreign() error {
	for _, f := range []struct {
		path string
		// first and count are the columns, -1: one id.
		first, count int
	}{{"/etc/passwd", 2, -1}, {"/etc/group", 2, -1}, {"/etc/subuid", 1, 2}, {"/etc/subgid", 1, 2}} {
		b, err := os.ReadFile(f.path)
		if err != nil {
			continue // nobody is listed there
		}
		if line := u.overlap(string(b), f.first, f.count); line != "" {
			return fmt.Errorf("uids %d to %d overlap with %q of %s: choose others with --uid-base", u.r.Base, u.r.last(), line, f.path)
		}
	}
	for _, path := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !u.within(string(b)) {
			return fmt.Errorf("uids %d to %d are not all mapped in the user namespace of the runner (%s): choose others with --uid-base and --uid-count", u.r.Base, u.r.last(), path)
		}
	}
	return nil
}

// overlap is the first name of a file like /etc/passwd that has ids of the range.
func (u *uids) overlap(text string, first, count int) string {
	for line := range strings.Lines(text) {
		col := strings.Split(strings.TrimSpace(line), ":")
		if len(col) <= max(first, count) {
			continue
		}
		from, err := strconv.ParseUint(col[first], 10, 32)
		if err != nil {
			continue
		}
		n := uint64(1)
		if count >= 0 {
			if n, err = strconv.ParseUint(col[count], 10, 32); err != nil || n == 0 {
				continue
			}
		}
		if from <= u.r.last() && from+n > uint64(u.r.Base) {
			return col[0]
		}
	}
	return ""
}

// within reports whether a map of a user namespace has the whole range in one line.
func (u *uids) within(text string) bool {
	for line := range strings.Lines(text) {
		var inside, outside, n uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err == nil && inside <= uint64(u.r.Base) && u.r.last() < inside+n {
			return true
		}
	}
	return false
}

// take hands out the lowest uid that nothing on this machine has.
func (u *uids) take() (*identity, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for n := range u.r.Count {
		uid := u.r.Base + n
		if u.used[uid] {
			continue
		}
		lock, err := os.OpenFile(filepath.Join(u.locks, strconv.FormatUint(uint64(uid), 10)), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock a uid: %w", err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			lock.Close()
			if errors.Is(err, unix.EWOULDBLOCK) { // another runner's, or something of it still lives
				continue
			}
			return nil, fmt.Errorf("lock a uid: %w", err)
		}
		mapping, err := u.mapping(uid)
		if err != nil {
			lock.Close()
			return nil, fmt.Errorf("a user namespace that maps root to uid %d: %w", uid, err)
		}
		u.used[uid] = true
		return &identity{uid: uid, lock: lock, mapping: mapping, from: u}, nil
	}
	return nil, fmt.Errorf("all %d uids from %d on are in use: --uid-count says how many there are", u.r.Count, u.r.Base)
}

// mapping returns the user namespace of a uid. u.mu is held.
func (u *uids) mapping(uid uint32) (*os.File, error) {
	if f := u.maps[uid]; f != nil {
		return f, nil
	}
	f, err := userNamespace(uid)
	if err == nil {
		u.maps[uid] = f
	}
	return f, err
}

// release gives a uid back. Until the launcher has ended, too, its lock keeps others
// from taking it.
func (i *identity) release() {
	if i == nil {
		return
	}
	i.from.mu.Lock()
	defer i.from.mu.Unlock()
	if i.lock != nil {
		i.lock.Close()
		i.lock = nil
		delete(i.from.used, i.uid)
	}
}

// userNamespace makes a user namespace that maps root to a uid, and all below that uid
// to themselves. A namespace is there as long as something of it is open, but only a
// process can make one.
func userNamespace(uid uint32) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
	defer ours.Close() // which ends a process that was not killed
	defer theirs.Close()
	m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(uid), Size: 1}, {ContainerID: 1, HostID: 1, Size: int(uid) - 1}}
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{launcherName, "waits"}, Env: launcherEnv, ExtraFiles: []*os.File{theirs, theirs}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: m, GidMappings: m}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return f, err
}

// idmapped makes a copy of a mount, with all below, in which files of root are those of
// a uid. It is mounted nowhere.
func idmapped(from string, mapping int, attr uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	set := &unix.MountAttr{Attr_set: attr | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(mapping)}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, set); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("mount_setattr", err)
	}
	return fd, nil
}

// bindMapped mounts such a copy with the mapping of mappingFD.
func bindMapped(from, to string, attr uint64) error {
	fd, err := idmapped(from, mappingFD, attr)
	if err != nil {
		return fmt.Errorf("bind with another owner: %w", err)
	}
	defer unix.Close(fd)
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, to, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// mappable returns an error for the first of some paths that cannot be shown with other
// owners.
func (u *uids) mappable(paths []path) error {
	if len(paths) == 0 {
		return nil
	}
	u.mu.Lock()
	mapping, err := u.mapping(u.r.Base)
	u.mu.Unlock()
	if err != nil {
		return err
	}
	for _, p := range paths {
		from := p.Path
		if p.From != "" {
			from = p.From
		}
		fd, err := idmapped(from, int(mapping.Fd()), 0)
		if err != nil {
			return fmt.Errorf("the file system of %s cannot show its files with another owner (idmapped mounts): %w", from, err)
		}
		unix.Close(fd)
	}
	return nil
}

// become gives this thread a uid and the gid of the same number, without any other
// group. With the change from root the kernel takes its capabilities (capabilities(7)).
// Other threads keep theirs, so it is not the syscall package's.
func become(uid uint32) error {
	id := uintptr(uid)
	for _, c := range []struct {
		name string
		nr   uintptr
		args [3]uintptr
	}{
		{"setgroups", unix.SYS_SETGROUPS, [3]uintptr{}}, {"setresgid", unix.SYS_SETRESGID, [3]uintptr{id, id, id}}, {"setresuid", unix.SYS_SETRESUID, [3]uintptr{id, id, id}},
	} {
		if _, _, errno := unix.RawSyscall(c.nr, c.args[0], c.args[1], c.args[2]); errno != 0 {
			return os.NewSyscallError(c.name, errno)
		}
	}
	// A change of uid sets it to fs.suid_dumpable (proc_sys_fs(5)), which may be 1: what
	// runs under the init with its uid could then write the init's memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	// A change of uid clears it (prctl(2), PR_SET_PDEATHSIG), and an instance would
	// outlive a runner that was killed.
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0))
}

// ownPipes lets a program open its output by name (/dev/stdout), as it may that of its
// own pipes. Files stay who they are.
func ownPipes(uid uint32) error {
	for fd := 1; fd <= 2; fd++ {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue // it was not given any
		}
		if st.Mode&unix.S_IFMT == unix.S_IFIFO {
			if err := unix.Fchown(fd, int(uid), int(uid)); err != nil {
				return os.NewSyscallError("fchown", err)
			}
		}
	}
	return nil
}

// accounts writes /etc/passwd and /etc/group with an entry for the uid: programs look
// up who they are.
func (r *rootBuilder) accounts(uid uint32) error {
	if err := os.MkdirAll(r.at("/etc"), 0o755); err != nil {
		return err
	}
	for name, line := range map[string]string{
		"/etc/passwd": fmt.Sprintf("function:x:%d:%d::/tmp:/bin/sh\n", uid, uid), "/etc/group": fmt.Sprintf("function:x:%d:\n", uid),
	} {
		b, err := os.ReadFile(name)
		if err != nil || len(b) > 128<<10 { // the root has no more room
			b = nil
		}
		if len(b) > 0 && b[len(b)-1] != '\n' {
			b = append(b, '\n')
		}
		if err := os.WriteFile(r.at(name), append(b, line...), 0o644); err != nil {
			return err
		}
	}
	return nil
}
