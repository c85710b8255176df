// Package keyfile checks that files with private keys are private: a key that
// others can read is refused, not used without a word.
package keyfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
)

// Check returns an error, with the command that mends it, when a key file can be
// read by everybody or written by others than its owner, or when others can put
// files into a folder of keys. Reading by the group is left to the administrator
// (mounted secrets). What does not exist passes.
func Check(path string) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || runtime.GOOS == "windows" {
		return nil
	}
	if err != nil {
		return err
	}
	mask, mode := fs.FileMode(0o027), "600"
	if info.IsDir() {
		mask, mode = 0o022, "700"
	}
	if info.Mode().Perm()&mask != 0 {
		return fmt.Errorf("%s is open to others (mode %04o) and holds key material: run chmod %s %s, and make new keys if somebody else may have had them",
			path, info.Mode().Perm(), mode, path)
	}
	return nil
}
