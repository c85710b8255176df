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
)

var minorVersion = regexp.MustCompile(`^3\.\d+$`)

// wheels installs what a requirements file with hashes names, from wheels only,
// and returns the directory to put on PYTHONPATH. Wheels may hold compiled code,
// so each minor version of python3 has its own; all is compiled, for functions may
// not write beside their code. module is one that is then there; contract is for
// whom it is.
func (o Options) wheels(ctx context.Context, tool, module, contract string, requirements []byte) (string, error) {
	py, err := exec.LookPath("python3")
	if err != nil {
		return "", errors.New("python3 is not on PATH: functions of the " + contract + " contract need Python 3 with pip (Debian and Ubuntu: apt-get install python3 python3-pip)")
	}
	out, err := run(ctx, exec.CommandContext(ctx, py, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"))
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w: %s", py, err, strings.TrimSpace(lastLines(out, 2)))
	}
	minor := strings.TrimSpace(string(out))
	if !minorVersion.MatchString(minor) {
		return "", fmt.Errorf("%s says that its version is %q; Python 3 is needed", py, minor)
	}
	sum := sha256.Sum256(requirements)
	name := tool + "-" + hex.EncodeToString(sum[:4]) + "-py" + minor
	path, err := o.install(ctx, name, module, func(ctx context.Context, tmp string) error {
		o.say("%s: fetching %s and what it needs with pip", name, module)
		file := filepath.Join(tmp, "requirements.txt")
		if err := os.WriteFile(file, requirements, 0o644); err != nil {
			return err
		}
		return pip(ctx, "install", "--require-hashes", "--only-binary=:all:", "--compile", "--no-warn-script-location", "--root-user-action=ignore",
			"-q", "--target", tmp, "-r", file)
	})
	if err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}
