package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/penstock-gateway/penstock/internal/keyfile"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// CredentialFile is the file, in the private folder, with the owner's token.
const CredentialFile = "credential"

// ownerCredential is the hash of the owner's token.
type ownerCredential struct {
	hash [sha256.Size]byte
	name string
}

// openOwner reads the owner's token, or makes it.
func openOwner(file string, authority [32]byte) (ownerCredential, error) {
	name := localName(os.Geteuid())
	if err := keyfile.Check(file); err != nil {
		return ownerCredential{}, err
	}
	b, err := os.ReadFile(file)
	if err == nil {
		t, err := ParseToken(string(b))
		if err == nil && t.CA == authority {
			return ownerCredential{hash: hashOf(t), name: name}, nil
		}
		// Of another authority, or damaged: nobody could use it.
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ownerCredential{}, fmt.Errorf("read the owner's credential: %w", err)
	}
	t := NewToken(authority)
	tmp, err := os.CreateTemp(filepath.Dir(file), ".credential-*") // mode 0600
	if err != nil {
		return ownerCredential{}, err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(FormatToken(t) + "\n")
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return ownerCredential{}, fmt.Errorf("write the owner's credential: %w", err)
	}
	if err := os.Rename(tmp.Name(), file); err != nil {
		return ownerCredential{}, fmt.Errorf("write the owner's credential: %w", err)
	}
	return ownerCredential{hash: hashOf(t), name: name}, nil
}

// is reports, in constant time, whether a token is the owner's.
func (c ownerCredential) is(t pki.JoinToken) bool {
	h := hashOf(t)
	return subtle.ConstantTimeCompare(h[:], c.hash[:]) == 1
}

// TokenPrefix lets people and secret scanners know a token of the configuration API.
const TokenPrefix = "pst1_"

// NewToken makes a token that pins the hash of the server's authority, so that a
// client needs no file to know the server.
func NewToken(authority [32]byte) pki.JoinToken {
	t := pki.JoinToken{CA: authority}
	rand.Read(t.Secret[:]) // never fails: crypto/rand ends the process first
	return t
}

// FormatToken is the text of a token.
func FormatToken(t pki.JoinToken) string { return pki.FormatToken(TokenPrefix, t) }

// ParseToken is the inverse of FormatToken. It finds every token that was cut or
// mistyped, and never repeats the text.
func ParseToken(text string) (pki.JoinToken, error) {
	return pki.ParseToken(TokenPrefix, "token of the configuration API", "`penstock access token create`", text)
}

// IsToken reports whether a text is meant to be a token of the configuration API.
func IsToken(text string) bool { return strings.HasPrefix(strings.TrimSpace(text), TokenPrefix) }

// hashOf is what a token is known by: the token itself is kept nowhere. Its secret
// has 160 random bits, so one round of a fast hash is enough.
func hashOf(t pki.JoinToken) [sha256.Size]byte { return sha256.Sum256(t.Secret[:]) }

func randomText() string { return rand.Text() + rand.Text() }
