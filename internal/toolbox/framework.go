package toolbox

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/penstock-gateway/penstock/tools/framework"
)

// FrameworkPython installs Google's Functions Framework for Python and what it
// needs, from wheels whose hashes are pinned in tools/framework/requirements.txt.
// It returns the directory to put on PYTHONPATH.
func FrameworkPython(ctx context.Context, o Options) (string, error) {
	return o.wheels(ctx, "framework", "functions_framework", "Functions Framework", framework.Requirements)
}

// FrameworkNode installs Google's Functions Framework for Node.js as
// tools/framework/package-lock.json pins it. It returns the directory to put on
// NODE_PATH. Packages with steps of their own at installation are not let run any.
func FrameworkNode(ctx context.Context, o Options) (string, error) {
	sum := sha256.Sum256(framework.PackageLock)
	name := "framework-" + hex.EncodeToString(sum[:4]) + "-node"
	const module = "node_modules/@google-cloud/functions-framework"
	path, err := o.install(ctx, name, module, func(ctx context.Context, tmp string) error {
		npm, err := exec.LookPath("npm")
		if err != nil {
			return errors.New("npm is not on PATH: functions of the Functions Framework contract for Node.js need Node.js with npm (Debian and Ubuntu: apt-get install nodejs npm)")
		}
		o.say("%s: fetching @google-cloud/functions-framework and what it needs with npm", name)
		for file, content := range map[string][]byte{"package.json": framework.Package, "package-lock.json": framework.PackageLock} {
			if err := os.WriteFile(filepath.Join(tmp, file), content, 0o644); err != nil {
				return err
			}
		}
		cmd := exec.CommandContext(ctx, npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
		cmd.Dir = tmp
		out, err := run(ctx, cmd)
		if err != nil {
			return fmt.Errorf("npm failed (%w): %s\n%s", err, npmHint(string(out)), lastLines(out, 8))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Dir(filepath.Dir(path)), nil
}

func npmHint(out string) string {
	switch {
	case strings.Contains(out, "ECONNREFUSED"), strings.Contains(out, "ENOTFOUND"), strings.Contains(out, "EAI_AGAIN"), strings.Contains(out, "ETIMEDOUT"):
		return "the package registry cannot be reached: check the network, or the registry that npm is configured with (npm config get registry)"
	case strings.Contains(out, "EINTEGRITY"):
		return "the registry served other bytes than the pinned ones: do not use them; check the registry that npm is configured with"
	case strings.Contains(out, "ENOSPC"):
		return "the disk is full"
	}
	return "see the output"
}
