package keyfile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		mode os.FileMode
		want string
	}{
		{file, 0o600, ""}, {file, 0o400, ""}, {file, 0o640, ""}, {file, 0o604, "chmod 600"}, {file, 0o620, "chmod 600"},
		{dir, 0o700, ""}, {dir, 0o755, ""}, {dir, 0o770, "chmod 700"}, {dir, 0o702, "chmod 700"},
	} {
		if err := os.Chmod(c.path, c.mode); err != nil {
			t.Fatal(err)
		}
		err := Check(c.path)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s with %04o: %v, want %q", c.path, c.mode, err, c.want)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := Check(filepath.Join(dir, "nobody")); err != nil {
		t.Errorf("what does not exist: %v", err)
	}
}
