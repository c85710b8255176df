package access

import (
	"context"
	"crypto/sha256"
	"os/user"
	"strconv"
	"time"
)

// Identity is who calls.
type Identity struct {
	// Name is unique over all ways to be known: "local:alice", "token:ci",
	// "user:bob", "oidc:https://idp.example.com#1234". It is the author in the history.
	Name string
	// Via is the way: "socket", "credential file", "token", "client
	// certificate", "OpenID Connect".
	Via string
	// From is where the call comes from: an address, or "uid 1000".
	From string
	// Expires is when the credential ends; zero: never.
	Expires time.Time
	// Owner is the owner of the control plane on its own machine, who may do all.
	Owner bool

	groups         []string // as the declared issuer says
	tokenHash      *[sha256.Size]byte
	spiffe, serial string
}

type identityKey struct{}

// WithIdentity returns a context of a call by id.
func WithIdentity(ctx context.Context, id *Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// From returns who calls; nil when that is not known.
func From(ctx context.Context) *Identity {
	id, _ := ctx.Value(identityKey{}).(*Identity)
	return id
}

// localName is the identity of a user of this machine.
func localName(uid int) string {
	text := strconv.Itoa(uid)
	if u, err := user.LookupId(text); err == nil && u.Username != "" {
		return "local:" + u.Username
	}
	return "local:" + text
}
