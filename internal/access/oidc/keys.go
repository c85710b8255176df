package oidc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/penstock-gateway/penstock/gateway"
)

const (
	// Keys are fetched again after refreshEvery, so that a key that the issuer
	// withdrew is soon trusted no longer; those of a file after refreshFile.
	refreshEvery = 5 * time.Minute
	refreshFile  = 10 * time.Second
	// retryAfter a failure.
	retryAfter = 15 * time.Second
	// askedEvery is the least time between fetches for tokens with unknown keys,
	// which anybody can send.
	askedEvery = 10 * time.Second
	// waitForKeys is how long a caller waits for such a fetch.
	waitForKeys = 3 * time.Second
	// maxKeys bounds the keys of a set.
	maxKeys = 100
)

// keys are the issuer's. When they cannot be fetched, the last good ones stay.
type keys struct {
	source *source
	first  chan struct{}      // closed with what the first fetch brought
	ask    chan chan struct{} // for a fetch ahead of time; closed when it is done

	mu      sync.Mutex
	list    []jose.JSONWebKey
	problem error // of the last fetch
	fetches int   // that have ended
}

func newKeys(s *source) *keys {
	return &keys{source: s, first: make(chan struct{}), ask: make(chan chan struct{}), problem: errors.New("they were not fetched yet")}
}

// run keeps the keys fresh until ctx ends.
func (k *keys) run(ctx context.Context) {
	next := time.NewTimer(k.refresh(ctx))
	defer next.Stop()
	var asked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			next.Reset(k.refresh(ctx))
		case done := <-k.ask:
			if now := k.source.o.Now(); now.Sub(asked) >= askedEvery {
				asked = now
				next.Reset(k.refresh(ctx))
			}
			close(done)
		}
	}
}

// refresh fetches the keys, and returns when to do so again.
func (k *keys) refresh(ctx context.Context) time.Duration {
	list, err := k.source.get(ctx)
	k.mu.Lock()
	before := k.problem
	k.problem = err
	if err == nil {
		k.list = list
	}
	if k.fetches++; k.fetches == 1 {
		close(k.first)
	}
	k.mu.Unlock()
	log := k.source.o.Logger
	switch {
	case ctx.Err() != nil:
	case err != nil:
		log.Warn("the keys of the issuer cannot be fetched; the last good ones stay", "issuer", k.source.o.Issuer, "error", err)
		return retryAfter
	case before != nil:
		log.Info("the keys of the issuer are known", "issuer", k.source.o.Issuer, "keys", len(list))
	}
	if k.source.o.JWKSFile != "" {
		return refreshFile
	}
	return refreshEvery
}

// refetch has the keys fetched once more than seen times, ahead of time, unless that was
// done just now, and waits for them a short while: the caller's connection stands still
// meanwhile.
func (k *keys) refetch(ctx context.Context, seen int) {
	ctx, cancel := context.WithTimeout(ctx, waitForKeys)
	defer cancel()
	select {
	case <-k.first:
	case <-ctx.Done():
		return
	}
	k.mu.Lock()
	fetches := k.fetches
	k.mu.Unlock()
	if fetches > seen {
		return // no need to ask: that would keep the next caller from it
	}
	done := make(chan struct{})
	select {
	case k.ask <- done:
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// of returns the keys that a token of a header may be signed with, and how many times
// keys were fetched until now.
func (k *keys) of(h jose.Header) (fit []jose.JSONWebKey, seen int, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.list) == 0 {
		return nil, k.fetches, &Unavailable{k.problem}
	}
	for _, key := range k.list {
		if (h.KeyID == "" || key.KeyID == h.KeyID) && takes(key, h.Algorithm) {
			fit = append(fit, key)
		}
	}
	return fit, k.fetches, nil
}

// takes reports whether a key is for an algorithm. A key that says nothing is for all
// that its kind allows.
func takes(key jose.JSONWebKey, algorithm string) bool {
	if key.Algorithm != "" {
		return key.Algorithm == algorithm
	}
	for _, a := range gateway.KeyAlgorithms(key.Key) {
		if a == algorithm {
			return true
		}
	}
	return false
}

// parseKeys reads a JSON Web Key Set, and leaves out what signatures cannot or must
// not be checked with.
func parseKeys(b []byte) ([]jose.JSONWebKey, error) {
	text := gateway.VerificationKeys(string(b))
	if text == "" {
		return nil, errors.New("it is not a JSON Web Key Set with a public key that signatures can be checked with")
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return nil, errors.New("a key cannot be read")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("it has %d keys; at most %d are taken", len(set.Keys), maxKeys)
	}
	return set.Keys, nil
}
