// Package backup is the form of a backup: a list of entries, and the file made of them.
//
// The file is a tar in a gzip. Its first entry is the manifest, its last one the SHA-256 of
// everything before. Between stand the revisions, the objects by their hash as the store
// holds them (secrets sealed), the roles and revocations, packages of functions by their
// digest and, when they were asked for, the keys.
package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/archive"
	"github.com/penstock-gateway/penstock/store"
)

// Names of entries.
const (
	manifestName  = "penstock-backup.json"
	revisionName  = "revisions/" // + number
	objectName    = "objects/"   // + SHA-256
	stateName     = "state/"     // + key
	packageName   = "packages/"  // + SHA-256
	KeyName       = "keys/"      // + file below the data folder
	SumName       = "SHA256"     // the last one
	format        = 1
	maxEntry      = 64 << 20 // of everything but packages
	maxHeldBytes  = 2 << 30
	sealKeyFile   = "seal.key"
	authorityCert = "pki/ca.crt"
	authorityKey  = "pki/ca.key"
)

// KeyFiles are the files below a data folder that are keys, or belong to one.
var KeyFiles = []string{sealKeyFile, authorityCert, authorityKey}

// statePrefixes are what of the run-time state is kept: roles, who has them, what is
// revoked, and which versions of functions have served. Tokens are not: one that was revoked since would be valid again.
var statePrefixes = []string{"access/role/", "access/binding/", "revoked/", "served/"}

// CAPin is the pin of the store that names the certificate authority.
const CAPin = "ca"

// Manifest describes a backup.
type Manifest struct {
	Format int `json:"format"`
	// Version of Penstock that took it, and when.
	Version string    `json:"version"`
	Taken   time.Time `json:"taken"`
	// Revision is the newest one, with so many Resources; Revisions is how many there are.
	Revision  int64 `json:"revision"`
	Resources int   `json:"resources"`
	Revisions int   `json:"revisions"`
	// SealKey and CA name the key that secrets are sealed with and the certificate
	// authority; "" for none.
	SealKey string `json:"sealKey,omitempty"`
	CA      string `json:"ca,omitempty"`
}

// Emit takes the next entry.
type Emit func(name string, size int64, data io.Reader) error

// Source is what a backup is taken of.
type Source struct {
	Store       store.Store
	PackagesDir string
	// Version of this program.
	Version string
	// History takes all revisions that are kept.
	History bool
}

// Take passes the entries of a backup to emit, but for keys and the sum. What is damaged is
// an error: a backup is whole.
func (s Source) Take(ctx context.Context, emit Emit) error {
	e, err := s.Store.Export(ctx, s.History)
	if err != nil {
		return err
	}
	m := Manifest{Format: format, Version: s.Version, Taken: time.Now().UTC().Truncate(time.Second), SealKey: e.SealKey, Revisions: len(e.Revisions)}
	if n := len(e.Revisions); n > 0 {
		m.Revision, m.Resources = e.Revisions[n-1].Number, e.Revisions[n-1].Resources
	}
	if m.CA, err = s.Store.Pin(ctx, CAPin, ""); err != nil {
		return err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	whole := func(name string, data []byte) error { return emit(name, int64(len(data)), bytes.NewReader(data)) }
	if err := whole(manifestName, append(text, '\n')); err != nil {
		return err
	}
	for _, r := range e.Revisions {
		text, err := store.EncodeRevision(r)
		if err == nil {
			err = whole(fmt.Sprintf("%s%019d", revisionName, r.Number), []byte(text))
		}
		if err != nil {
			return err
		}
	}
	for data, err := range e.Objects {
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		if err := whole(objectName+hex.EncodeToString(sum[:]), data); err != nil {
			return err
		}
	}
	if err := s.state(ctx, whole); err != nil {
		return err
	}
	return s.packages(ctx, m.Revision, emit)
}

func (s Source) state(ctx context.Context, whole func(string, []byte) error) error {
	for _, prefix := range statePrefixes {
		read, err := s.Store.ReadState(ctx, prefix)
		if err != nil {
			return err
		}
		for _, d := range read.Damaged {
			return fmt.Errorf("the run-time state %s is damaged: %s; stop the control plane and mend it (penstock store repair)", d.Key, d.Detail)
		}
		for _, key := range slices.Sorted(maps.Keys(read.Values)) {
			if err := whole(stateName+key, read.Values[key]); err != nil {
				return err
			}
		}
	}
	return nil
}

// packages emits the uploaded code that the functions of a revision name.
func (s Source) packages(ctx context.Context, revision int64, emit Emit) error {
	if s.PackagesDir == "" {
		return nil
	}
	resources, err := s.Store.Load(ctx, revision)
	if err != nil {
		return err
	}
	for _, digest := range digests(resources) {
		f, err := os.Open(filepath.Join(s.PackagesDir, digest+".zip"))
		if errors.Is(err, os.ErrNotExist) {
			continue // of a version that is not kept any more
		} else if err != nil {
			return err
		}
		info, err := f.Stat()
		if err == nil {
			err = emit(packageName+digest, info.Size(), f)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// digests are those of the packages that functions and their versions name, sorted.
func digests(resources []*pb.Resource) []string {
	used := map[string]bool{}
	for _, r := range resources {
		for _, source := range []string{r.GetFunction().GetSource(), r.GetFunctionVersion().GetSpec().GetSource()} {
			if d, ok := strings.CutPrefix(source, archive.DigestPrefix); ok {
				used[d] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(used))
}

// Contents is a whole backup, but for its packages.
type Contents struct {
	Manifest Manifest
	// Revisions, oldest first.
	Revisions []store.Revision
	// Objects by SHA-256 in hex, State and Keys by their names.
	Objects, State, Keys map[string][]byte
	// Packages are their SHA-256 in hex.
	Packages []string
}

// Collector puts entries together and checks them. OnPackage, if set, gets the content of
// packages; what it leaves is read and checked all the same.
type Collector struct {
	OnPackage func(digest string, size int64, data io.Reader) error

	c    Contents
	sum  hash.Hash
	held int64
	done bool
}

// errForeign is a file that is something else.
var errForeign = errors.New("it is not a backup of Penstock")

// Add takes the next entry.
func (c *Collector) Add(name string, size int64, data io.Reader) error {
	if c.done {
		return fmt.Errorf("%q stands behind its end", name)
	}
	if c.sum == nil {
		if name != manifestName {
			return errForeign
		}
		c.sum = sha256.New()
		c.c.Objects, c.c.State, c.c.Keys = map[string][]byte{}, map[string][]byte{}, map[string][]byte{}
	}
	if name == SumName {
		return c.checkSum(size, data)
	}
	fmt.Fprintf(c.sum, "%s\x00%d\x00", name, size)
	data = io.TeeReader(data, c.sum)
	if digest, ok := strings.CutPrefix(name, packageName); ok {
		return c.addPackage(digest, size, data)
	}
	if size > maxEntry || c.held+size > maxHeldBytes {
		return fmt.Errorf("%q is too large: %d bytes", name, size)
	}
	c.held += size
	b := make([]byte, size)
	if _, err := io.ReadFull(data, b); err != nil {
		return fmt.Errorf("%q is cut off: %w", name, err)
	}
	return c.addEntry(name, b)
}

func (c *Collector) checkSum(size int64, data io.Reader) error {
	if size != 2*sha256.Size {
		return errors.New("its checksum is damaged")
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(data, b); err != nil {
		return fmt.Errorf("it is cut off: %w", err)
	}
	if string(b) != hex.EncodeToString(c.sum.Sum(nil)) {
		return errors.New("it does not match its checksum: it was changed or damaged since it was taken")
	}
	c.done = true
	return nil
}

func (c *Collector) addPackage(digest string, size int64, data io.Reader) error {
	if err := archive.CheckDigest(archive.DigestPrefix + digest); err != nil || size > archive.MaxPackage {
		return fmt.Errorf("package %q of %d bytes is not valid", digest, size)
	}
	sum := sha256.New()
	data = io.TeeReader(data, sum)
	if c.OnPackage != nil {
		if err := c.OnPackage(digest, size, data); err != nil {
			return fmt.Errorf("package %s: %w", digest, err)
		}
	}
	if _, err := io.Copy(io.Discard, data); err != nil {
		return fmt.Errorf("package %s is cut off: %w", digest, err)
	}
	if hex.EncodeToString(sum.Sum(nil)) != digest {
		return fmt.Errorf("package %s is damaged", digest)
	}
	c.c.Packages = append(c.c.Packages, digest)
	return nil
}

func (c *Collector) addEntry(name string, b []byte) error {
	cut := func(prefix string) (string, bool) { return strings.CutPrefix(name, prefix) }
	if name == manifestName {
		if err := json.Unmarshal(b, &c.c.Manifest); err != nil {
			return errForeign
		}
		if f := c.c.Manifest.Format; f != format {
			return fmt.Errorf("it has format %d, and this is Penstock for format %d: use the version of Penstock that took it (%s)", f, format, c.c.Manifest.Version)
		}
		return nil
	}
	if _, ok := cut(revisionName); ok {
		r, err := store.DecodeRevision(b)
		if n := len(c.c.Revisions); err == nil && n > 0 && c.c.Revisions[n-1].Number >= r.Number {
			err = fmt.Errorf("revision %d is out of order", r.Number)
		}
		c.c.Revisions = append(c.c.Revisions, r)
		return err
	}
	if h, ok := cut(objectName); ok {
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != h {
			return fmt.Errorf("object %s is damaged", h)
		}
		c.c.Objects[h] = b
		return nil
	}
	if key, ok := cut(stateName); ok {
		if !slices.ContainsFunc(statePrefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			return fmt.Errorf("%q does not belong into a backup", name)
		}
		c.c.State[key] = b
		return nil
	}
	if file, ok := cut(KeyName); ok && slices.Contains(KeyFiles, file) {
		c.c.Keys[file] = b
		return nil
	}
	return fmt.Errorf("%q does not belong into a backup", name)
}

// Finish returns what came, when it was a whole backup.
func (c *Collector) Finish() (*Contents, error) {
	switch {
	case c.sum == nil:
		return nil, errForeign
	case !c.done:
		return nil, errors.New("it is cut off: its end is missing")
	}
	m := c.c.Manifest
	last := store.Revision{}
	if n := len(c.c.Revisions); n > 0 {
		last = c.c.Revisions[n-1]
	}
	if last.Number != m.Revision || len(c.c.Revisions) != m.Revisions {
		return nil, fmt.Errorf("it should hold %d revisions up to %d, and holds %d up to %d", m.Revisions, m.Revision, len(c.c.Revisions), last.Number)
	}
	return &c.c, nil
}

// Export is the contents in the form of the store.
func (c *Contents) Export() *store.Export {
	return &store.Export{Revisions: c.Revisions, SealKey: c.Manifest.SealKey, Objects: func(yield func([]byte, error) bool) {
		for _, h := range slices.Sorted(maps.Keys(c.Objects)) {
			if !yield(c.Objects[h], nil) {
				return
			}
		}
	}}
}
