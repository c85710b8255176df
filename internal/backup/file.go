package backup

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Summed passes entries on to emit; end, called last, passes the sum of all.
func Summed(emit Emit) (with Emit, end func() error) {
	sum := sha256.New()
	with = func(name string, size int64, data io.Reader) error {
		fmt.Fprintf(sum, "%s\x00%d\x00", name, size)
		return emit(name, size, io.TeeReader(data, sum))
	}
	return with, func() error { return emitSum(emit, sum) }
}

func emitSum(emit Emit, sum hash.Hash) error {
	text := hex.EncodeToString(sum.Sum(nil))
	return emit(SumName, int64(len(text)), strings.NewReader(text))
}

// WriteFile makes a file of the entries that take passes to its argument. The file is there
// when all of it is on disk, and only for its owner; one of that name is replaced then.
func WriteFile(file string, take func(Emit) error) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".part-*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	err = writeTo(tmp, take)
	if err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

func writeTo(w io.Writer, take func(Emit) error) error {
	zip := gzip.NewWriter(w)
	out := tar.NewWriter(zip)
	emit, end := Summed(func(name string, size int64, data io.Reader) error {
		if err := out.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o600, Format: tar.FormatPAX}); err != nil {
			return err
		}
		if n, err := io.Copy(out, data); err != nil || n != size {
			return errors.Join(err, fmt.Errorf("%s: %d of %d bytes", name, n, size))
		}
		return nil
	})
	if err := take(emit); err != nil {
		return err
	}
	if err := end(); err != nil {
		return err
	}
	return errors.Join(out.Close(), zip.Close())
}

// EachEntry reads the entries of a file as they are.
func EachEntry(file string, visit Emit) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, errForeign)
	}
	in := tar.NewReader(zip)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%s: it is cut off or damaged: %w", file, err)
		}
		if err := visit(h.Name, h.Size, in); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	// What is behind the tar is part of the gzip, whose own checksum stands at its end.
	if n, err := io.Copy(io.Discard, zip); err != nil {
		return fmt.Errorf("%s: it is cut off or damaged: %w", file, err)
	} else if n > 0 {
		return fmt.Errorf("%s: %d bytes stand behind its end", file, n)
	}
	return nil
}

// ReadFile reads a whole backup, and checks all of it, before anybody uses a part.
func ReadFile(file string) (*Contents, error) {
	var c Collector
	if err := EachEntry(file, c.Add); err != nil {
		return nil, err
	}
	out, err := c.Finish()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return out, nil
}
