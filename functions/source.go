package functions

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// sourceDir returns the absolute folder of a source. It must exist and stay in
// the root, also when symbolic links are followed.
func sourceDir(root *os.Root, source string) (string, error) {
	info, err := root.Stat(filepath.FromSlash(source))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("source %q does not exist in the runner's functions root %s", source, root.Name())
	case err != nil && strings.Contains(err.Error(), "escapes"):
		return "", fmt.Errorf("source %q leaves the runner's functions root (by .., an absolute path or a symbolic link): it must be a folder below it", source)
	case err != nil:
		return "", fmt.Errorf("source %q: %w", source, err)
	case !info.IsDir():
		return "", fmt.Errorf("source %q is a file, it must be a folder", source)
	}
	base, err := filepath.EvalSymlinks(root.Name())
	if err != nil {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(base, filepath.FromSlash(source)))
	if err != nil {
		return "", err
	}
	// Checked again on the resolved path, which is what is used.
	if rel, err := filepath.Rel(base, dir); err != nil || rel == ".." || strings.HasPrefix(rel, ".."+string(filepath.Separator)) {
		return "", fmt.Errorf("source %q leaves the runner's functions root", source)
	}
	return dir, nil
}
