package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// SealKeyBytes is the size of a seal key: AES-256.
const SealKeyBytes = 32

// keyIDBytes is the size of the name of a key that stands in each sealed object.
const keyIDBytes = 8

// sealer seals secrets with AES-256-GCM (NIST SP 800-38D) under a random nonce. The
// name of the object is additional data, so that nobody who can write to etcd can
// put one secret in the place of another.
type sealer struct {
	aead cipher.AEAD
	id   [keyIDBytes]byte
	// state is the key of the tags of run-time state.
	state []byte
}

// newSealer returns nil when there is no key.
func newSealer(key []byte) (*sealer, error) {
	if len(key) == 0 {
		return nil, nil
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("store: %w: %w", ErrSealKey, err)
	}
	// The random nonce has 96 bits: safe for 2^32 secrets under one key.
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("store: %w: %w", ErrSealKey, err)
	}
	s := &sealer{aead: aead}
	derive := func(what string) []byte {
		mac := hmac.New(sha256.New, key)
		mac.Write([]byte(what))
		return mac.Sum(nil)
	}
	copy(s.id[:], derive("penstock seal key id"))
	s.state = derive("penstock run-time state")
	return s, nil
}

// seal returns key id, nonce and ciphertext.
func (s *sealer) seal(name string, plain []byte) ([]byte, error) {
	if s == nil {
		return nil, fmt.Errorf("%w: %s is a secret and the store was opened without a seal key", ErrSealKey, name)
	}
	return s.aead.Seal(s.id[:], nil, plain, []byte(name)), nil
}

// unseal reverses seal.
func (s *sealer) unseal(name string, sealed []byte) ([]byte, error) {
	if s == nil {
		return nil, fmt.Errorf("%w: %s is a secret and the store was opened without a seal key", ErrSealKey, name)
	}
	if len(sealed) < keyIDBytes {
		return nil, errors.New("sealed content is too short")
	}
	if id := sealed[:keyIDBytes]; !bytes.Equal(id, s.id[:]) {
		return nil, fmt.Errorf("%w: %s was sealed with key %x, the store was opened with key %x", ErrSealKey, name, id, s.id)
	}
	plain, err := s.aead.Open(nil, nil, sealed[keyIDBytes:], []byte(name))
	if err != nil {
		return nil, errors.New("sealed content does not authenticate: it was altered, or moved from another name")
	}
	return plain, nil
}

// LoadOrCreateSealKey reads a seal key from a file that holds it in base64, or makes
// a random one there, readable by its owner only, when there is no such file. Of
// several processes that create it at once all get the same key.
func LoadOrCreateSealKey(file string) ([]byte, error) {
	if err := keyfile.Check(file); err != nil {
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	key, err := loadSealKey(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	key = make([]byte, SealKeyBytes)
	rand.Read(key)
	if err := createFile(file, base64.StdEncoding.AppendEncode(nil, key)); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return loadSealKey(file)
		}
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	return key, nil
}

// loadSealKey reads a key file.
func loadSealKey(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("store: seal key: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(key) != SealKeyBytes {
		return nil, fmt.Errorf("store: %w: %s must hold %d bytes in base64; make one with: head -c %d /dev/urandom | base64", ErrSealKey, file, SealKeyBytes, SealKeyBytes)
	}
	return key, nil
}

// createFile writes a new file whole and durably, or fails with fs.ErrExist. The
// link is what makes it appear at once: a reader never sees half a key.
func createFile(file string, content []byte) error {
	dir := filepath.Dir(file)
	tmp, err := os.CreateTemp(dir, ".sealkey-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(append(content, '\n')); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), file); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
