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
	"regexp"
	"strings"

	"github.com/penstock-gateway/penstock/tools/lambda"
)

var minorVersion = regexp.MustCompile(`^3\.\d+$`)

// Lambda installs awslambdaric, AWS's runtime interface client for Python, and
// what it needs, from wheels whose hashes are pinned in
// tools/lambda/requirements.txt. It returns the directory to put on PYTHONPATH.
// The wheels hold compiled code, so each minor version of python3 has its own.
func Lambda(ctx context.Context, o Options) (string, error) {
	py, err := exec.LookPath("python3")
	if err != nil {
		return "", errors.New("python3 is not on PATH: functions of the Lambda contract need Python 3 with pip (Debian and Ubuntu: apt-get install python3 python3-pip)")
	}
	out, err := run(ctx, exec.CommandContext(ctx, py, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"))
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w: %s", py, err, strings.TrimSpace(lastLines(out, 2)))
	}
	minor := strings.TrimSpace(string(out))
	if !minorVersion.MatchString(minor) {
		return "", fmt.Errorf("%s says that its version is %q; Python 3 is needed", py, minor)
	}
	sum := sha256.Sum256(lambda.Requirements)
	name := "lambda-" + hex.EncodeToString(sum[:4]) + "-py" + minor
	module, err := o.install(ctx, name, "awslambdaric", func(ctx context.Context, tmp string) error {
		o.say("%s: fetching awslambdaric and what it needs with pip", name)
		file := filepath.Join(tmp, "requirements.txt")
		if err := os.WriteFile(file, lambda.Requirements, 0o644); err != nil {
			return err
		}
		return pip(ctx, "install", "--require-hashes", "--only-binary=:all:", "--no-compile", "--no-warn-script-location", "--root-user-action=ignore",
			"-q", "--target", tmp, "-r", file)
	})
	if err != nil {
		return "", err
	}
	return filepath.Dir(module), nil
}
