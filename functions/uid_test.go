package functions_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	"github.com/penstock-gateway/penstock/functions/sandbox"
)

// TestOwnUIDs: where the runner is root, each instance and each build has a uid of its
// own, and its source may be root's alone.
//
// Not beside other tests: their runners, in the same process, end what they know nothing
// of, such as the process that tries the range.
func TestOwnUIDs(t *testing.T) {
	if os.Geteuid() != 0 {
		return // there are none
	}
	root := t.TempDir()
	f := hostile(t, root, "served", "sh", "-c", "id -u > uid; stat -c %u serve.py > owner; id -un > name")
	f.Instances = 2
	for _, err := range []error{os.Chmod(filepath.Join(root, "served", "serve.py"), 0o600), os.Chmod(filepath.Join(root, "served"), 0o700)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var cache string
	r := startRunner(t, func(c *functions.Config) {
		cache, c.Root, c.UIDs = c.CacheDir, root, sandbox.UIDRange{Base: 1_900_100_000, Count: 50}
	})
	r.want(f)
	ours := func(text string) uint32 {
		t.Helper()
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
		if err != nil || n < 1_900_100_000 || n >= 1_900_100_050 {
			t.Fatalf("%q is not a uid of the range", text)
		}
		return uint32(n)
	}
	var seen []uint32
	for _, i := range r.ready("served", 2) {
		if !slices.Contains(i.GetIsolation(), sandbox.MeansUID) {
			t.Errorf("it is not reported: %v", i.GetIsolation())
		}
		info, err := os.Stat("/proc/" + strconv.Itoa(int(i.GetPid())))
		if err != nil {
			t.Fatal(err)
		}
		uid := info.Sys().(*syscall.Stat_t).Uid
		if ours(strconv.Itoa(int(uid))); slices.Contains(seen, uid) {
			t.Errorf("two instances have the uid %d", uid)
		}
		seen = append(seen, uid)
		if built, owner := mustSend(t, i, "GET", "/uid", "").body, mustSend(t, i, "GET", "/owner", "").body; ours(built) != ours(owner) {
			t.Errorf("the build was run by %s, its files were of %s", built, owner)
		}
		if who := mustSend(t, i, "GET", "/name", "").body; who != "function\n" {
			t.Errorf("the user is called %q", who)
		}
	}
	// What the build has written is root's.
	err := filepath.WalkDir(cache, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := e.Info(); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
