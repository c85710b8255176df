package archive

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DigestPrefix begins the digest of a package.
const DigestPrefix = "sha256:"

// Digest is DigestPrefix and the hexadecimal SHA-256 of what r holds.
func Digest(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return DigestPrefix + hex.EncodeToString(h.Sum(nil)), nil
}

// CheckDigest tells what is wrong with the text of a digest.
func CheckDigest(d string) error {
	text, ok := strings.CutPrefix(d, DigestPrefix)
	if b, err := hex.DecodeString(text); !ok || err != nil || len(b) != sha256.Size || strings.ToLower(text) != text {
		return fmt.Errorf("%.128q is not a digest: it is %q and 64 hexadecimal digits in lower case", d, DigestPrefix)
	}
	return nil
}

// left out of a package: version control, caches and what tools leave behind.
var leftOut = map[string]bool{
	".git": true, ".hg": true, ".svn": true, ".DS_Store": true, "__pycache__": true, ".pytest_cache": true,
	".venv": true, "node_modules": true, ".penstock": true,
}

// Pack writes a folder as a zip. The same files give the same bytes: entries are in
// the order of their names and carry no times. Folders of version control, virtual
// environments, node_modules and caches stay out, and what skip (which may be nil)
// says of names below the folder, with / between their parts.
func Pack(w io.Writer, dir string, skip func(name string) bool) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	z := zip.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		if leftOut[e.Name()] || strings.HasSuffix(e.Name(), ".pyc") || skip != nil && skip(name) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return packEntry(z, root, name, e)
	})
	if err != nil {
		return err
	}
	return z.Close()
}

func packEntry(z *zip.Writer, root *os.Root, name string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: time.Time{}}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return nil // a folder is where its files are
	case mode&fs.ModeSymlink != 0:
		target, err := root.Readlink(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		h.SetMode(fs.ModeSymlink | 0o777)
		w, err := z.CreateHeader(h)
		if err == nil {
			_, err = io.WriteString(w, target)
		}
		return err
	case !mode.IsRegular():
		return fmt.Errorf("%s is neither file nor folder nor link", name)
	case mode.Perm()&0o111 != 0:
		h.SetMode(0o755)
	default:
		h.SetMode(0o644)
	}
	w, err := z.CreateHeader(h)
	if err != nil {
		return err
	}
	f, err := root.Open(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
