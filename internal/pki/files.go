package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// createOnce writes the file unless it is there. Of processes that race for it,
// one wins and the others keep the winner's file.
func createOnce(file string, mode fs.FileMode, content func() ([]byte, error)) error {
	if exists(file) {
		return nil
	}
	b, err := content()
	if err != nil {
		return err
	}
	tmp, err := writeTemp(file, b, mode)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	// A link, unlike a rename, fails when the name is taken.
	if err := os.Link(tmp, file); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create %s: %w", file, err)
	}
	return nil
}

// writeAtomic replaces the file.
func writeAtomic(file string, b []byte, mode fs.FileMode) error {
	tmp, err := writeTemp(file, b, mode)
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("replace %s: %w", file, err)
	}
	return nil
}

// writeTemp writes a new file beside file and returns its name.
func writeTemp(file string, b []byte, mode fs.FileMode) (name string, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", file, err)
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", file, err)
		}
	}()
	if err := f.Chmod(mode); err != nil {
		return "", err
	}
	if _, err := f.Write(b); err != nil {
		return "", err
	}
	return f.Name(), f.Sync()
}

func readCert(file string) (*x509.Certificate, error) {
	block, err := readPEM(file, pemTypeCert)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", file, err)
	}
	return cert, nil
}

func readKey(file string) (crypto.Signer, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the key: %w", err)
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fmt.Errorf("key %s: %w", file, err)
	}
	return key, nil
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemTypeKey {
		return nil, fmt.Errorf("no PEM block %q", pemTypeKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

func readPEM(file, kind string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s holds no PEM block %q", file, kind)
	}
	return block.Bytes, nil
}
