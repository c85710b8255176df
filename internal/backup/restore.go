package backup

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// Target is a data folder that a backup is restored into.
type Target struct {
	// Dir must not be there, or be empty.
	Dir string
	// SealKeyFile and PKIDir are where the keys come from when the backup has none.
	SealKeyFile, PKIDir string
	// NewCA makes a new certificate authority: every proxy and runner must join again.
	NewCA bool
	// Store has the options of the store but for its place and key.
	Store store.Options
}

// RestoreFile fills a data folder with a backup. On an error nothing has changed.
func RestoreFile(ctx context.Context, file string, t Target) (*Contents, error) {
	if entries, err := os.ReadDir(t.Dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("%s is not empty: name a folder that is not there yet, or move this one away; into a running control plane restore with --as-new-revision", t.Dir)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	c, err := ReadFile(file)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(t.Dir)), 0o700); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(filepath.Clean(t.Dir)), filepath.Base(t.Dir)+".restoring-*")
	if err != nil {
		return nil, err
	}
	err = t.fill(ctx, tmp, file, c)
	if err == nil {
		if err = os.Remove(t.Dir); errors.Is(err, os.ErrNotExist) {
			err = nil
		}
	}
	if err == nil {
		err = os.Rename(tmp, t.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(tmp))
	}
	return c, nil
}

// fill makes the data folder.
func (t Target) fill(ctx context.Context, dir, file string, c *Contents) error {
	if err := t.keys(dir, c); err != nil {
		return err
	}
	o := t.Store
	o.DataDir = filepath.Join(dir, "etcd")
	if c.Manifest.SealKey != "" {
		o.SealKeyFile = filepath.Join(dir, sealKeyFile)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	st, err := store.Open(ctx, o)
	if err != nil {
		return err
	}
	err = t.fillStore(ctx, st, dir, c)
	if err := errors.Join(err, st.Close()); err != nil {
		return err
	}
	return extractPackages(file, filepath.Join(dir, "packages"))
}

func (t Target) fillStore(ctx context.Context, st store.Store, dir string, c *Contents) error {
	made, err := st.Export(ctx, false)
	if err != nil {
		return err
	}
	if made.SealKey != c.Manifest.SealKey {
		return fmt.Errorf("the secrets of this backup are sealed with key %s, and this is key %s: name the right file with --seal-key-file", c.Manifest.SealKey, made.SealKey)
	}
	if err := st.Import(ctx, c.Export()); err != nil {
		return err
	}
	// Everything must be readable before anybody relies on it.
	if _, err := st.Load(ctx, c.Manifest.Revision); err != nil {
		return err
	}
	for key, value := range c.State {
		if err := st.PutState(ctx, key, value); err != nil {
			return err
		}
	}
	authority := c.Manifest.CA
	if t.NewCA {
		ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
		if err != nil {
			return err
		}
		sum := ca.Hash()
		authority = hex.EncodeToString(sum[:])
	} else if err := checkAuthority(dir, authority); err != nil {
		return err
	}
	if authority == "" {
		return nil
	}
	_, err = st.Pin(ctx, CAPin, authority)
	return err
}

// checkAuthority compares the certificate authority in a folder with that of a backup.
func checkAuthority(dir, want string) error {
	if want == "" {
		return nil
	}
	ca, err := pki.LoadCA(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	sum := ca.Hash()
	if got := hex.EncodeToString(sum[:]); got != want {
		return fmt.Errorf("the backup was taken with the certificate authority %s, and this is %s: name the right folder with --pki-dir, or take a new one with --new-ca", want, got)
	}
	return nil
}

// keys puts the keys in place: those of the backup, else those that were named.
func (t Target) keys(dir string, c *Contents) error {
	found := map[string][]byte{}
	for name, data := range c.Keys {
		if strings.HasPrefix(name, "pki/") && t.NewCA {
			continue
		}
		found[name] = data
	}
	read := func(name, from string) error {
		data, err := os.ReadFile(from)
		if err == nil {
			found[name] = data
		}
		return err
	}
	var err error
	if t.SealKeyFile != "" {
		err = read(sealKeyFile, t.SealKeyFile)
	}
	if t.PKIDir != "" {
		err = errors.Join(err, read(authorityCert, filepath.Join(t.PKIDir, "ca.crt")), read(authorityKey, filepath.Join(t.PKIDir, "ca.key")))
	}
	if err != nil {
		return err
	}
	if found[sealKeyFile] == nil && c.Manifest.SealKey != "" {
		err = fmt.Errorf("the backup holds no keys, and its secrets are sealed with key %s: name the file of that key with --seal-key-file", c.Manifest.SealKey)
	}
	if found[authorityKey] == nil && c.Manifest.CA != "" && !t.NewCA {
		err = errors.Join(err, fmt.Errorf("the backup holds no keys, and its proxies know the certificate authority %s: name its folder with --pki-dir, or take a new one with --new-ca, and every proxy and runner must join again", c.Manifest.CA))
	}
	for name, data := range found {
		if err == nil {
			err = writePrivate(filepath.Join(dir, name), data)
		}
	}
	return err
}

func writePrivate(file string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

// extractPackages writes the packages of a backup that was checked into a folder.
func extractPackages(file, dir string) error {
	c := Collector{OnPackage: func(digest string, _ int64, data io.Reader) error { return SavePackage(dir, digest, data) }}
	if err := EachEntry(file, c.Add); err != nil {
		return err
	}
	_, err := c.Finish()
	return err
}

// SavePackage keeps a package whose digest its caller checks.
func SavePackage(dir, digest string, data io.Reader) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "restore-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, digest+".zip"))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
