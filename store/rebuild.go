package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/internal/flock"
)

// Rebuilt says what Rebuild brought over.
type Rebuilt struct {
	Revisions, Objects, State int
	// StateLost tells that run-time state was left out: a page is lost that may have had
	// the deletion of something, such as of a token that was revoked.
	StateLost bool
}

// Rebuild makes a new store in a directory of what can be read in an embedded one whose
// files are damaged, and changes nothing there. Objects and records are taken by their
// hashes, from the database and from the log.
func Rebuild(ctx context.Context, o Options, from, into string) (_ *Rebuilt, err error) {
	o, err = o.withDefaults()
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(from)
	if err != nil {
		return nil, err
	}
	defer func() { _ = flock.Close(lock) }()
	values, lost, err := newestValues(filepath.Join(from, "etcd", "member", "snap", "db"), o.Prefix+"/")
	if err != nil {
		return nil, err
	}
	if f := values["format"]; f != "" {
		if err := checkFormat(from, f); err != nil {
			return nil, err
		}
	}
	for h, data := range loggedObjects(from, o.Prefix+"/o/") {
		values["o/"+h.String()] = string(data)
	}
	newest := newestNumber(values)
	logged(from, o.Prefix+"/", func(key string, value []byte) {
		// Older records may have been removed since.
		if r, err := decodeRevision(key, value); err == nil && strings.HasPrefix(key, "r/") && r.Number >= newest {
			values[key] = string(value)
		}
	})
	keep, out := selectValues(values, lost)
	if keep["head"] == "" {
		return nil, fmt.Errorf("store: no revision in %s can be read whole: restore a backup (penstock restore)", from)
	}
	o.DataDir = into
	e, err := startEmbedded(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.close()) }()
	for chunk := range slices.Chunk(slices.Sorted(maps.Keys(keep)), maxOps) {
		size, puts := 0, []clientv3.Op{}
		flush := func() error {
			_, err := e.client.Txn(ctx).Then(puts...).Commit()
			size, puts = 0, nil
			return err
		}
		for _, key := range chunk {
			if size += len(keep[key]); size > maxBatchBytes && len(puts) > 0 {
				if err := flush(); err != nil {
					return nil, err
				}
				size = len(keep[key])
			}
			puts = append(puts, clientv3.OpPut(o.Prefix+"/"+key, keep[key]))
		}
		if err := flush(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// newestValues are the newest values of a database below a prefix, by the rest of their keys,
// and whether pages of it are lost.
func newestValues(file, prefix string) (values map[string]string, lost bool, err error) {
	type version struct {
		at      revisionKey
		value   string
		deleted bool
	}
	newest := map[string]version{}
	bad, err := walkDatabase(file, func(bucket string, key, value []byte) error {
		if bucket != "key" {
			return nil
		}
		kv, at, err := checkValue(key, value)
		if err != nil {
			return err
		}
		name, ok := strings.CutPrefix(string(kv.GetKey()), prefix)
		if old, known := newest[name]; ok && (!known || old.at.main < at.main || old.at.main == at.main && old.at.sub < at.sub) {
			newest[name] = version{at, string(kv.GetValue()), at.deleted}
		}
		return nil
	})
	values = map[string]string{}
	for name, v := range newest {
		if !v.deleted {
			values[name] = v.value
		}
	}
	return values, len(bad) > 0, err
}

// newestNumber is that of the newest revision whose record is whole.
func newestNumber(values map[string]string) (newest int64) {
	for key, value := range values {
		if !strings.HasPrefix(key, "r/") && key != "head" {
			continue
		}
		if r, err := decodeRevision(key, []byte(value)); err == nil {
			newest = max(newest, r.Number)
		}
	}
	return newest
}

// selectValues keeps what is whole. Without all of the database, run-time state is left out.
func selectValues(values map[string]string, lost bool) (map[string]string, *Rebuilt) {
	keep, out := map[string]string{}, &Rebuilt{StateLost: lost}
	head, number := "", int64(0)
	for key, value := range values {
		kind, rest, _ := strings.Cut(key, "/")
		switch kind {
		case "o":
			if h, err := parseHash(rest); err != nil || sha256.Sum256([]byte(value)) != h {
				continue
			}
			out.Objects++
		case "r", "head":
			r, err := decodeRevision(key, []byte(value))
			if err != nil {
				continue
			}
			if r.Number > number {
				head, number = value, r.Number
			}
			if kind == "head" {
				continue
			}
			out.Revisions++
		case "s":
			if lost {
				continue
			}
			out.State++
		case "i":
			if lost {
				continue // the lists of that state
			}
		case "q", "epoch":
			continue // request ids live for an hour only
		}
		keep[key] = value
	}
	if head != "" {
		keep["head"], keep[fmt.Sprintf("r/%019d", number)] = head, head
	}
	return keep, out
}
