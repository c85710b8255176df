package functions_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/functions"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// tarball is a .tar.gz of some files.
func tarball(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for name, text := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// evilBackend builds a wheel (PEP 517) that holds what came of its attacks.
const evilBackend = `
import json, os, zipfile, attack
def build_wheel(to, config_settings=None, metadata_directory=None):
    attack.run(json.load(open("attacks.json")), "results.json")
    name = "evilpackage-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(to, name), "w") as z:
        z.writestr("evilpackage.py", "RESULTS = " + repr(open("results.json").read()))
        z.writestr("evilpackage-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: evilpackage\nVersion: 1.0\n")
        z.writestr("evilpackage-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr("evilpackage-1.0.dist-info/RECORD", "")
    return name
`

// TestInstallAttacks has packages that pip and npm install try what they must not do: a
// source distribution that is built, and a postinstall script.
func TestInstallAttacks(t *testing.T) {
	key := filepath.Join(t.TempDir(), "ca.key")
	write(t, key, "PRIVATE KEY")
	root, cache, packages, marker := t.TempDir(), t.TempDir(), t.TempDir(), "left-"+rand.Text()
	// Settings of the runner's environment name the folder, so an installation sees it.
	t.Setenv("PIP_FIND_LINKS", strings.TrimSpace(packages+" "+os.Getenv("PIP_FIND_LINKS")))
	t.Setenv("npm_config_test_packages", packages)
	attacks := machineAttacks(t, key, root, cache, marker)
	writeAttacks(t, filepath.Join(packages, "attacks.json"), attacks)
	read := func(file string) string {
		t.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	list, script := read(filepath.Join(packages, "attacks.json")), read("testdata/hostile/attack.py")

	sdist := tarball(t, map[string]string{
		"evilpackage-1.0/PKG-INFO":       "Metadata-Version: 2.1\nName: evilpackage\nVersion: 1.0\n",
		"evilpackage-1.0/pyproject.toml": "[build-system]\nrequires = []\nbuild-backend = \"backend\"\nbackend-path = [\".\"]\n[project]\nname = \"evilpackage\"\nversion = \"1.0\"\n",
		"evilpackage-1.0/backend.py":     evilBackend, "evilpackage-1.0/attack.py": script, "evilpackage-1.0/attacks.json": list,
	})
	write(t, filepath.Join(packages, "evilpackage-1.0.tar.gz"), string(sdist))
	write(t, filepath.Join(root, "pip", "requirements.txt"), "evilpackage==1.0\n")
	write(t, filepath.Join(root, "pip", "app.py"), "import evilpackage\n\ndef handler(event, context):\n    return {'statusCode': 200, 'body': evilpackage.RESULTS}\n")

	tgz := tarball(t, map[string]string{
		"package/package.json": `{"name": "evilpackage", "version": "1.0.0", "scripts": {"postinstall": "python3 attack.py attacks.json results.json"}}`,
		"package/attack.py":    script, "package/attacks.json": list,
	})
	write(t, filepath.Join(packages, "npm", "evilpackage-1.0.0.tgz"), string(tgz))
	sum := sha512.Sum512(tgz)
	lock, err := json.Marshal(map[string]any{
		"name": "f", "lockfileVersion": 3, "requires": true, "packages": map[string]any{
			"": map[string]any{"name": "f", "dependencies": map[string]string{"evilpackage": "1.0.0"}},
			"node_modules/evilpackage": map[string]any{
				"version": "1.0.0", "resolved": "file://" + filepath.Join(packages, "npm", "evilpackage-1.0.0.tgz"),
				"integrity": "sha512-" + base64.StdEncoding.EncodeToString(sum[:]), "hasInstallScript": true,
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(root, "npm", "package.json"), `{"name": "f", "main": "index.js", "dependencies": {"evilpackage": "1.0.0"}}`)
	write(t, filepath.Join(root, "npm", "package-lock.json"), string(lock))
	write(t, filepath.Join(root, "npm", "index.js"), "exports.check = (req, res) => res.send(require('fs').readFileSync(require.resolve('evilpackage/results.json'), 'utf8'));\n")

	r := startRunner(t, func(c *functions.Config) { c.Root, c.CacheDir = root, cache })
	other := hostile(t, root, "other", "true")
	packed := zipOf(t, map[string]string{"app.py": hello})
	r.packages = map[string][]byte{digestOf(t, packed): packed}
	r.want(other, python("packed", "app.handler", source(digestOf(t, packed))))
	r.ready("other", 1)
	r.ready("packed", 1)
	for id, f := range map[string]*pb.Function{"pip": python("pip", "app.handler", source("pip")), "npm": gcf("npm", "npm", frameworkNode, "check")} {
		t.Run(id, func(t *testing.T) {
			r.want(other, f)
			i := r.ready(id, 1)[0]
			noProcess(t, marker)
			checkConfined(t, judge(t, attacks, mustSend(t, i, "GET", "/", "").body))
			untouched(t, root, cache)
		})
	}
	r.stop()
	if left, err := filepath.Glob(filepath.Join(cache, "layers", "*", "home")); err != nil || len(left) > 0 {
		t.Errorf("an installation leaves a cache for the next: %v %v", left, err)
	}
}
