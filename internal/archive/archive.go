// Package archive reads packages of functions: zip files from people who may mean
// harm. Names that leave the folder, links that do, special files, names that differ
// only in case or stand twice, and archives that unpack to far more than they are
// (zip bombs) are refused before a byte is written, and the bounds hold while it is
// written, too, because what the directory of a zip says of sizes need not be true.
package archive

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// Limits bound an archive.
type Limits struct {
	// Files is the largest number of entries.
	Files int
	// Bytes is the largest size of all files together, unpacked.
	Bytes int64
	// Ratio is how many times its packed size an archive of more than 10 MiB may
	// unpack to.
	Ratio int64
}

// Default is what AWS Lambda allows (250 MiB unpacked), and somewhat more for
// layers of dependencies that come with the code.
var Default = Limits{Files: 100_000, Bytes: 1 << 30, Ratio: 100}

// MaxPackage is the largest packed size, in bytes.
const MaxPackage = 256 << 20

const (
	ratioFrom = 10 << 20
	maxPath   = 1024
	maxLink   = 1024
	// maxDepth is how many folders deep an entry may lie: each costs time to make,
	// whatever its name's length.
	maxDepth = 64
	// maxDirectory bounds the directory of a zip, in bytes: it is held in memory,
	// several times as large, before its entries can be counted.
	maxDirectory = 32 << 20
)

// Check tells what is wrong with a zip of some size, as one error; nil when it may
// be unpacked.
func Check(r io.ReaderAt, size int64, l Limits) error {
	_, err := open(r, size, l)
	return err
}

// Extract unpacks a zip into an empty folder. After an error the folder holds a part
// of it and should be removed.
func Extract(r io.ReaderAt, size int64, dir string, l Limits) error {
	z, err := open(r, size, l)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	left := l.Bytes
	for _, f := range z.File {
		if err := extract(root, f, &left); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

func extract(root *os.Root, f *zip.File, left *int64) error {
	name := filepath.FromSlash(path.Clean(f.Name))
	mode := f.Mode()
	if mode.IsDir() {
		return root.MkdirAll(name, 0o755)
	}
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if mode&fs.ModeSymlink != 0 {
		target, err := readLink(f)
		if err != nil {
			return err
		}
		return root.Symlink(target, name)
	}
	in, err := f.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644|mode.Perm()&0o111)
	if err != nil {
		return err
	}
	n, err := io.Copy(out, io.LimitReader(in, *left+1))
	if *left -= n; err == nil && *left < 0 {
		err = errors.New("it unpacks to more than its directory says")
	}
	return errors.Join(err, out.Close())
}

// open reads and checks the directory of a zip.
func open(r io.ReaderAt, size int64, l Limits) (*zip.Reader, error) {
	if size > MaxPackage {
		return nil, fmt.Errorf("it has %d MiB; at most %d are taken", size>>20, MaxPackage>>20)
	}
	bounded := &boundedReader{r: r, left: maxDirectory}
	z, err := zip.NewReader(bounded, size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return nil, fmt.Errorf("it is not a zip file: %w", err)
	}
	bounded.open = true
	if len(z.File) > l.Files {
		return nil, fmt.Errorf("it has %d entries; at most %d are taken", len(z.File), l.Files)
	}
	total := uint64(0)
	seen := make(map[string]string, len(z.File))
	links := map[string]string{}
	files := 0
	for _, f := range z.File {
		if err := checkEntry(f, seen, links); err != nil {
			return nil, fmt.Errorf("entry %.200q: %w", f.Name, err)
		}
		if f.Mode().IsRegular() {
			files++
		}
		if f.UncompressedSize64 > uint64(l.Bytes) {
			return nil, fmt.Errorf("entry %.200q has %d MiB; at most %d are taken in all", f.Name, f.UncompressedSize64>>20, l.Bytes>>20)
		}
		total += f.UncompressedSize64
	}
	if err := checkPaths(seen, links); err != nil {
		return nil, err
	}
	switch {
	case files == 0:
		return nil, errors.New("it holds no file")
	case total > uint64(l.Bytes):
		return nil, fmt.Errorf("it unpacks to %d MiB; at most %d are taken", total>>20, l.Bytes>>20)
	case total > ratioFrom && total > uint64(size)*uint64(l.Ratio):
		return nil, fmt.Errorf("it unpacks to %d times its size; at most %d times are taken", total/uint64(max(size, 1)), l.Ratio)
	}
	return z, nil
}

// checkEntry tells what is wrong with one entry. seen are the names of those before
// it, as they stand there, links the targets of those that are symbolic links.
func checkEntry(f *zip.File, seen, links map[string]string) error {
	name := strings.TrimSuffix(f.Name, "/")
	mode := f.Mode()
	switch {
	case name == "" || !utf8.ValidString(name) || strings.ContainsAny(name, "\x00\\"):
		return errors.New("its name is empty, is not UTF-8, or has a NUL or a backslash")
	case len(name) > maxPath:
		return fmt.Errorf("its name has more than %d bytes", maxPath)
	case !filepath.IsLocal(filepath.FromSlash(name)) || strings.Contains("/"+name+"/", "/../"):
		return errors.New("its name leads out of the archive")
	case strings.Count(name, "/") > maxDepth:
		return fmt.Errorf("it lies more than %d folders deep", maxDepth)
	case f.Flags&1 != 0:
		return errors.New("it is encrypted")
	case mode&fs.ModeSymlink != 0:
		if f.UncompressedSize64 > maxLink {
			return errors.New("the symbolic link is too long")
		}
		target, err := readLink(f)
		if err != nil {
			return err
		}
		links[path.Clean(name)] = target
	case !mode.IsDir() && !mode.IsRegular():
		return errors.New("it is neither file nor folder nor symbolic link")
	}
	clean := path.Clean(name)
	if other, twice := seen[clean]; twice && !mode.IsDir() {
		return fmt.Errorf("it is there twice (%.200q)", other)
	}
	seen[clean] = f.Name
	return nil
}

// checkPaths looks at all names together, in whatever order they came. Nothing may
// lie below a link, or it could be written through it. And no link may step back
// (..) from where another link leads to: what looks as if it stayed in the archive
// would then leave it.
func checkPaths(seen, links map[string]string) error {
	if len(links) == 0 {
		return nil
	}
	for clean, name := range seen {
		for dir := path.Dir(clean); dir != "."; dir = path.Dir(dir) {
			if _, is := links[dir]; is {
				return fmt.Errorf("entry %.200q: it lies below the symbolic link %.200q", name, dir)
			}
		}
	}
	for name, target := range links {
		at, through := path.Dir(name), ""
		for part := range strings.SplitSeq(target, "/") {
			if part == ".." && through != "" {
				return fmt.Errorf("entry %.200q: the symbolic link steps back from another one, %.200q, to %.200q", name, through, target)
			}
			at = path.Join(at, part)
			if _, is := links[at]; is {
				through = at
			}
		}
	}
	return nil
}

// boundedReader bounds what is read until open is set.
type boundedReader struct {
	r    io.ReaderAt
	left int64
	open bool
}

// ReadAt implements io.ReaderAt.
func (b *boundedReader) ReadAt(p []byte, off int64) (int, error) {
	if !b.open {
		if b.left -= int64(len(p)); b.left < 0 {
			return 0, fmt.Errorf("its directory has more than %d MiB", maxDirectory>>20)
		}
	}
	return b.r.ReadAt(p, off)
}

// readLink is the target of a symbolic link that stays in the archive.
func readLink(f *zip.File) (string, error) {
	r, err := f.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxLink+1))
	if err != nil {
		return "", err
	}
	target := string(b)
	joined := path.Join(path.Dir(path.Clean(f.Name)), target)
	if target == "" || len(target) > maxLink || strings.HasPrefix(target, "/") || strings.ContainsAny(target, "\x00\\") || !filepath.IsLocal(filepath.FromSlash(joined)) {
		return "", fmt.Errorf("the symbolic link leads out of the archive, to %.200q", target)
	}
	return target, nil
}
