package toolbox

import (
	"context"
	"crypto/sha256"
	_ "embed" // of what Jaeger is built from
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// jaegerVersion is for messages; jaeger.mod pins it.
const jaegerVersion = "1.62.0"

// What Jaeger is built from: copies of go.mod, go.sum and main.go of the module
// tools/jaeger, whose files cannot be embedded from outside it. A test compares them,
// and its -update copies them.
var (
	//go:embed jaeger.mod
	jaegerMod []byte
	//go:embed jaeger.sum
	jaegerSum []byte
	//go:embed jaeger.main
	jaegerMain []byte
)

// Jaeger returns the path of the part of Jaeger that `penstock up` uses (tools/jaeger):
// a store in memory with its query API and an OTLP receiver, on Unix sockets. It is
// built with the Go on PATH from modules that are pinned by hash, at low priority (about
// 66 s of CPU the first time); ending ctx stops it.
func Jaeger(ctx context.Context, o Options) (string, error) {
	key := sha256.Sum256(slices.Concat(jaegerSum, jaegerMain))
	name := "jaeger-" + jaegerVersion + "-" + hex.EncodeToString(key[:4])
	return o.install(ctx, name, "jaeger", func(ctx context.Context, tmp string) error {
		module := filepath.Join(tmp, "module")
		if err := os.Mkdir(module, 0o755); err != nil {
			return err
		}
		for file, content := range map[string][]byte{"go.mod": jaegerMod, "go.sum": jaegerSum, "main.go": jaegerMain} {
			if err := os.WriteFile(filepath.Join(module, file), content, 0o644); err != nil {
				return err
			}
		}
		if err := buildJaeger(ctx, o, name, module, filepath.Join(tmp, "jaeger")); err != nil {
			return err
		}
		return os.RemoveAll(module)
	})
}

func buildJaeger(ctx context.Context, o Options, name, dir, to string) error {
	err := buildGo(ctx, o, name, dir, to, ".")
	if errors.Is(err, errNoGo) {
		return fmt.Errorf("%w: Jaeger is built from source; install Go, send traces to a collector of your own (penstock up --otlp-to HOST:PORT), or do without them (--no-jaeger)", err)
	}
	return err
}
