package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"github.com/penstock-gateway/penstock/internal/backup"
	"github.com/penstock-gateway/penstock/internal/control/fleet"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

const (
	// caPin is the pin of the store that has the SHA-256 of the certificate authority.
	caPin = backup.CAPin
	// unknownCA stands for the authority of a store that was made before stores knew it.
	unknownCA = "unknown"
)

// openAuthority opens the certificate authority in dir. The store knows which one it
// is, as proxies and runners know no other: another one, or none, is refused, and one
// is made only for a store that has none and no configuration yet. replace is the
// SHA-256 of one that is to be given up.
func openAuthority(ctx context.Context, st store.Store, dir, replace string, log *slog.Logger) (*pki.CA, error) {
	pinned, err := st.Pin(ctx, caPin, "")
	if err != nil {
		return nil, err
	}
	known := pinned
	if known == "" {
		head, err := st.Head(ctx)
		if err != nil {
			return nil, err
		}
		if head.Number > 0 {
			known = unknownCA
		}
	}
	open := pki.LoadCA
	if known == "" || replace == known {
		open = pki.OpenCA
	}
	ca, err := open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--pki-dir: %w; the certificate authority of this store has SHA-256 %s, and none was made in its place. %s", err, known, mendAuthority(known))
	} else if err != nil {
		return nil, fmt.Errorf("--pki-dir: %w", err)
	}
	hash := ca.Hash()
	mine := hex.EncodeToString(hash[:])
	if replace != "" && replace == known && mine != known {
		return ca, replaceAuthority(ctx, st, pinned, mine, log)
	}
	if pinned, err = st.Pin(ctx, caPin, mine); err != nil {
		return nil, err
	}
	if pinned != mine {
		return nil, fmt.Errorf("--pki-dir %s holds another certificate authority (SHA-256 %s) than the one of this store (SHA-256 %s). %s", dir, mine, pinned, mendAuthority(pinned))
	}
	return ca, nil
}

// mendAuthority says what to do.
func mendAuthority(known string) string {
	return "Name the right folder (is its volume mounted?), or restore ca.crt and ca.key from a backup or another replica. " +
		"Only when it is lost for good: --replace-ca " + known + " takes a new one, and every proxy and runner must join again"
}

// replaceAuthority makes an authority that of the store.
func replaceAuthority(ctx context.Context, st store.Store, pinned, mine string, log *slog.Logger) error {
	if err := st.Repin(ctx, caPin, pinned, mine); err != nil {
		return err
	}
	log.Warn("audit: the certificate authority was replaced; proxies and runners with certificates of the earlier one must join again", "earlier", pinned, "now", mine)
	// Streams with certificates of the earlier one do not come back.
	return fleet.Forget(ctx, st)
}
