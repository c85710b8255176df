package toolbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// redisMultiCall is the file that Debian's redis-tools has the server in: one
// binary that serves as redis-server when it is called by that name, which is
// all that the package redis-server adds besides the service.
const redisMultiCall = "/usr/bin/redis-check-rdb"

// Redis returns the path of a redis-server: the one on PATH, else, for root on
// Debian or Ubuntu, the one of the package redis-tools, which it installs. That
// package has no service, so nothing is started and nothing stays behind.
func Redis(ctx context.Context, o Options) (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	const help = "install the package redis-server (Debian and Ubuntu: apt-get install redis-server)"
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return "", errors.New("no redis-server on PATH: " + help)
	}
	path, err := o.install(ctx, "redis", "redis-server", func(ctx context.Context, tmp string) error {
		if !exists(redisMultiCall) {
			if os.Geteuid() != 0 {
				return errors.New("no redis-server on PATH, and only root may install it: " + help)
			}
			if err := aptInstall(ctx, o, apt, "redis-tools"); err != nil {
				return err
			}
		}
		return os.Symlink(redisMultiCall, filepath.Join(tmp, "redis-server"))
	})
	if err != nil {
		return "", err
	}
	out, err := run(ctx, exec.CommandContext(ctx, path, "--version"))
	if err != nil || !strings.HasPrefix(string(out), "Redis server") {
		return "", fmt.Errorf("%s is not a Redis server (%s): %s", path, strings.TrimSpace(lastLines(out, 1)), help)
	}
	return path, nil
}

func aptInstall(ctx context.Context, o Options, apt, pkg string) error {
	for _, args := range [][]string{
		{"update", "-qq"},
		{"install", "-y", "-qq", "--no-install-recommends", pkg},
	} {
		o.say("redis: apt-get %s", strings.Join(args, " "))
		cmd := exec.CommandContext(ctx, apt, args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := run(ctx, cmd); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return fmt.Errorf("apt-get %s failed (%w):\n%s", strings.Join(args, " "), err, lastLines(out, 8))
		}
	}
	return nil
}
