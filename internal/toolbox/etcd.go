package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
)

// etcdVersion is for messages; tools/etcd/go.mod pins it.
const etcdVersion = "3.7.3"

// etcdPrograms are built from these packages.
var etcdPrograms = map[string]string{"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3"}

// Etcd returns the path of etcd, beside which etcdctl is, for trying out several replicas.
// Both are built with the Go on PATH from the module tools/etcd of this clone, whose
// modules are pinned by hash; the first time takes about a minute.
func Etcd(ctx context.Context, o Options) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	module := filepath.Join(root, "tools", "etcd")
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	key := sha256.Sum256(sums)
	name := "etcd-" + etcdVersion + "-" + hex.EncodeToString(key[:4])
	return o.install(ctx, name, "etcd", func(ctx context.Context, tmp string) error {
		for program, pkg := range etcdPrograms {
			if err := buildGo(ctx, o, name, module, filepath.Join(tmp, program), pkg); err != nil {
				return err
			}
		}
		return nil
	})
}
