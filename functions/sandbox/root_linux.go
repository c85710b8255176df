package sandbox

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds symbolic links that are followed in one path.
const maxLinks = 40

// devices are what programs expect in /dev.
var devices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}

// rootAt is where the new root is mounted before it becomes the root: the one folder
// that is on every machine and holds nothing that a function is to see.
const rootAt = "/proc"

func devicePaths() (out []path) {
	for _, d := range devices {
		out = append(out, path{Path: d, Write: true})
	}
	return out
}

// beginRoot makes a root that holds some paths, at their places. This process is in a
// mount namespace and a pid namespace of its own.
func beginRoot(a *ahead) (*rootBuilder, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", rootAt, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	r := &rootBuilder{dir: rootAt}
	if err := r.tmpfs("/tmp", "mode=1777,size=1m"); err != nil { // before what lies below it
		return nil, err
	}
	system := append(slices.Clone(a.System), devicePaths()...)
	if a.UID != 0 {
		if err := r.accounts(a.UID); err != nil {
			return nil, err
		}
		system = slices.DeleteFunc(system, func(p path) bool { return p.Path == "/etc/passwd" || p.Path == "/etc/group" })
	}
	if err := r.placeAll(system); err != nil {
		return nil, err
	}
	// What is the system's stays root's; what is the function's is its own.
	r.mapped = a.UID != 0
	return r, r.special(a.PlainProc)
}

// complete adds what one program needs, and makes it the root of this process.
func (r *rootBuilder) complete(s *spec) error {
	if err := unix.Mount("tmpfs", r.at("/tmp"), "tmpfs", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("mode=1777,size=%d", s.Tmp)); err != nil {
		return fmt.Errorf("bound the size of /tmp: %w", err)
	}
	if err := r.placeAll(s.Paths); err != nil {
		return err
	}
	return r.pivot()
}

// placeAll binds paths, folders before what lies below them.
func (r *rootBuilder) placeAll(paths []path) error {
	slices.SortStableFunc(paths, func(a, b path) int { return cmp.Compare(len(a.Path), len(b.Path)) })
	for _, p := range paths {
		if err := r.place(p, p.Path, 0); err != nil {
			return fmt.Errorf("%s: %w", p.Path, err)
		}
	}
	return nil
}

// tmpfs mounts an empty folder that only this root has.
func (r *rootBuilder) tmpfs(name, options string) error {
	if err := os.MkdirAll(r.at(name), 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", r.at(name), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount %s: %w", name, err)
	}
	return nil
}

type rootBuilder struct {
	dir   string
	bound []boundPath
	// mapped shows files of root as those of the uid that mappingFD is for.
	mapped bool
}

// boundPath is a path that is there; mapped as the rootBuilder's.
type boundPath struct {
	path
	mapped bool
}

func (r *rootBuilder) at(p string) string { return filepath.Join(r.dir, p) }

// place binds a path; symbolic links on the way are there, too.
func (r *rootBuilder) place(p path, name string, depth int) error {
	if depth > maxLinks {
		return errors.New("too many symbolic links")
	}
	if p.From != "" {
		return r.bind(p.From, name, p)
	}
	current := "/"
	parts := strings.Split(strings.Trim(name, "/"), "/")
	for i, part := range parts {
		next := filepath.Join(current, part)
		info, err := os.Lstat(next)
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			current = next
			continue
		}
		target, err := os.Readlink(next)
		if err != nil {
			return err
		}
		if err := r.link(target, next); err != nil {
			return err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(current, target)
		}
		return r.place(p, filepath.Join(append([]string{target}, parts[i+1:]...)...), depth+1)
	}
	return r.bind(current, current, p)
}

// covered reports whether a path is there already, and as it is to be: as writable, and
// of the function's uid where that is to be. A function may lie in a folder of the
// system's, such as one of PATH.
func (r *rootBuilder) covered(name string, write bool) (there, enough bool) {
	for _, b := range r.bound {
		// Below what comes from elsewhere is not what is there outside.
		if b.From == "" && (name == b.Path || strings.HasPrefix(name, b.Path+"/")) {
			there, enough = true, enough || (b.Write || !write) && (b.mapped || !r.mapped)
		}
	}
	return there, enough
}

func (r *rootBuilder) link(target, name string) error {
	if there, _ := r.covered(name, false); there {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(r.at(name)), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(target, r.at(name)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (r *rootBuilder) bind(from, name string, p path) error {
	there, enough := r.covered(name, p.Write)
	if enough {
		return nil
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	to := r.at(name)
	if !there {
		if err := mountPoint(to, info.IsDir()); err != nil {
			return err
		}
	}
	r.bound = append(r.bound, boundPath{path{Path: name, Write: p.Write, From: p.From}, r.mapped})
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if !p.Write {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if r.mapped {
		return bindMapped(from, to, attr.Attr_set)
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, to, unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return nil
}

func mountPoint(to string, dir bool) error {
	if dir {
		return os.MkdirAll(to, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// special mounts /proc of the own processes and what /dev has besides devices.
func (r *rootBuilder) special(plainProc bool) error {
	if err := r.proc(plainProc); err != nil {
		return err
	}
	if err := r.tmpfs("/dev/shm", "mode=1777,size=64m"); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, r.at(name)); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes it the root and lets go of the old one.
func (r *rootBuilder) pivot() error {
	if err := os.Chdir(r.dir); err != nil {
		return err
	}
	// The old root comes to lie over the new one, from where it is taken away
	// (pivot_root(2), "pivot_root(".", ".")").
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(unix.AT_FDCWD, "/", 0, attr)
}
