// Package service is what the services of the control plane have in common: how they
// tell callers of the store's errors, and the audit log of what a call changed.
package service

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	"github.com/penstock-gateway/penstock/store"
)

// StoreError maps errors of the store to gRPC statuses.
func StoreError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return status.Error(codes.NotFound, strings.TrimPrefix(err.Error(), "store: "))
	case errors.Is(err, store.ErrNoSpace):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, store.ErrState):
		return status.Error(codes.DataLoss, strings.TrimPrefix(err.Error(), "store: "))
	case errors.Is(err, context.Canceled):
		return status.Error(codes.Canceled, err.Error())
	}
	// A deadline, too: it is the one that we give the store. When the caller's own
	// is over, the caller hears nothing of what is said here.
	return status.Error(codes.Unavailable, "store: "+strings.TrimPrefix(err.Error(), "store: "))
}

// NoteChange notes for the audit log what a call changed beside the configuration: "" is
// before what is new, and after what is gone.
func NoteChange(ctx context.Context, name, before, after string) {
	if tell := api.CallerOf(ctx).Changed; tell != nil {
		tell(name, before, after)
	}
}

// ShortHash stands for a value in the audit log; "" for none.
func ShortHash(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return HashHex(b)[:20]
}

// HashHex is the SHA-256 of b.
func HashHex(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
