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

// newRoot makes a root that holds only some paths, at their places, and makes it the
// root of this process, which is in a mount namespace and a pid namespace of its own.
func newRoot(dir string, paths []path) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	r := &rootBuilder{dir: dir}
	for _, d := range devices {
		paths = append(slices.Clone(paths), path{Path: d, Write: true})
	}
	// Folders before what lies below them.
	slices.SortStableFunc(paths, func(a, b path) int { return cmp.Compare(len(a.Path), len(b.Path)) })
	for _, p := range paths {
		if err := r.place(p, p.Path, 0); err != nil {
			return fmt.Errorf("%s: %w", p.Path, err)
		}
	}
	if err := r.special(); err != nil {
		return err
	}
	return r.pivot()
}

type rootBuilder struct {
	dir   string
	bound []path
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

// covered tells whether a path is there already, as writable as it is to be.
func (r *rootBuilder) covered(name string, write bool) (there, enough bool) {
	for _, b := range r.bound {
		// Below what comes from elsewhere is not what is there outside.
		if b.From == "" && (name == b.Path || strings.HasPrefix(name, b.Path+"/")) {
			there, enough = true, enough || b.Write || !write
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
	if err := unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	r.bound = append(r.bound, path{Path: name, Write: p.Write, From: p.From})
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if !p.Write {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
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
func (r *rootBuilder) special() error {
	for _, d := range []string{"/proc", "/dev/shm"} {
		if err := os.MkdirAll(r.at(d), 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", r.at("/proc"), "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("tmpfs", r.at("/dev/shm"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=64m"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
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
