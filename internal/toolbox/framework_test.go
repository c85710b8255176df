package toolbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestFramework installs both frameworks and has each say that it is there.
func TestFramework(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Progress: os.Stderr}
	python, err := FrameworkPython(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "python3", "-c", "import functions_framework, gunicorn, cloudevents")
	cmd.Env = append(os.Environ(), "PYTHONPATH="+python)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("import functions_framework: %v: %s", err, out)
	}
	// Functions may not write beside the code, so it is compiled.
	if found, _ := filepath.Glob(filepath.Join(python, "functions_framework", "__pycache__", "*.pyc")); len(found) == 0 {
		t.Error("the framework is not compiled")
	}
	node, err := FrameworkNode(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.CommandContext(t.Context(), "node", "-e", "require('@google-cloud/functions-framework')")
	cmd.Env = append(os.Environ(), "NODE_PATH="+node)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("require the framework: %v: %s", err, out)
	}
	if again, err := FrameworkNode(t.Context(), Options{Dir: dir, Offline: true}); err != nil || again != node {
		t.Errorf("again: %q, %v", again, err)
	}
}

func TestFrameworkErrors(t *testing.T) {
	_, err := FrameworkNode(t.Context(), Options{Dir: t.TempDir(), Offline: true})
	wantError(t, err, "is not installed", "make test")
	t.Run("no network", func(t *testing.T) {
		t.Setenv("npm_config_registry", "http://127.0.0.1:1/")
		t.Setenv("npm_config_cache", t.TempDir())
		t.Setenv("npm_config_fetch_retries", "0")
		dir := t.TempDir()
		_, err := FrameworkNode(t.Context(), Options{Dir: dir})
		wantError(t, err, "npm failed", "cannot be reached")
		noLeftovers(t, dir)
	})
	t.Run("no npm", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		dir := t.TempDir()
		_, err := FrameworkNode(t.Context(), Options{Dir: dir})
		wantError(t, err, "npm is not on PATH", "apt-get install nodejs npm")
		noLeftovers(t, dir)
		_, err = FrameworkPython(t.Context(), Options{Dir: dir})
		wantError(t, err, "python3 is not on PATH", "Functions Framework contract")
	})
}
