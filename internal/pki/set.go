package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// currentLink is the symbolic link of a file set to the folder that is in force.
const currentLink = "current"

// ReplaceSet replaces several files of dir at once: a certificate, its key, the
// CA. Who reads them through their names in dir sees all old or all new ones,
// whenever the process or the machine dies. The set is whole: a file of the last
// set that is not in this one is gone.
//
// As Kubernetes does it for mounted secrets: the files are in a folder of their
// own, dir/NAME is a symbolic link to current/NAME, and one rename in dir moves
// the link current. That rename is also what Envoy's watched directory sees.
// Names that end in .key get mode 0600.
func ReplaceSet(dir string, set map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	gen, err := os.MkdirTemp(dir, "set-")
	if err != nil {
		return fmt.Errorf("make a folder in %s: %w", dir, err)
	}
	names := slices.Sorted(maps.Keys(set))
	for _, name := range names {
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		if err := writeAtomic(filepath.Join(gen, name), set[name], mode); err != nil {
			return errors.Join(err, os.RemoveAll(gen))
		}
	}
	old, err := os.Readlink(filepath.Join(dir, currentLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s is not a symbolic link: %w", filepath.Join(dir, currentLink), err), os.RemoveAll(gen))
	}
	if err := moveLink(dir, currentLink, filepath.Base(gen), gen); err != nil {
		return errors.Join(err, os.RemoveAll(gen))
	}
	for _, name := range names {
		want := filepath.Join(currentLink, name)
		if at, err := os.Readlink(filepath.Join(dir, name)); err == nil && at == want {
			continue
		}
		if err := moveLink(dir, name, want, gen); err != nil {
			return err
		}
	}
	return removeSets(dir, filepath.Base(gen), old)
}

// moveLink makes dir/name a symbolic link to target, in place of what it was. gen
// makes the name that it has for a moment nobody else's.
func moveLink(dir, name, target, gen string) error {
	tmp := filepath.Join(dir, "."+name+"."+filepath.Base(gen))
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("link %s: %w", name, err)
	}
	if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
		return errors.Join(fmt.Errorf("replace %s: %w", filepath.Join(dir, name), err), os.Remove(tmp))
	}
	return nil
}

// setKept is how old the folder of an earlier set is before it goes: a younger one
// may be another process's that is at work.
const setKept = time.Minute

// removeSets removes the folders of earlier sets. The last one stays: somebody
// may be reading its files.
func removeSets(dir string, keep ...string) error {
	all, err := filepath.Glob(filepath.Join(dir, "set-*"))
	if err != nil {
		return err
	}
	for _, g := range all {
		if slices.Contains(keep, filepath.Base(g)) {
			continue
		}
		if info, statErr := os.Stat(g); statErr == nil && time.Since(info.ModTime()) > setKept {
			err = errors.Join(err, os.RemoveAll(g))
		}
	}
	return err
}
