package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// record is the stored form of a Revision, under its number and under the head.
type record struct {
	Number    int64     `json:"number"`
	Root      string    `json:"root"`
	Time      time.Time `json:"time"`
	Author    string    `json:"author,omitempty"`
	Message   string    `json:"message,omitempty"`
	RequestID string    `json:"requestId,omitempty"`
	Resources int       `json:"resources"`
	Changes   int       `json:"changes"`
	// Sum is the SHA-256, in hex, of the record without it. Earlier builds wrote none.
	Sum string `json:"sum,omitempty"`
}

// encodeRevision returns the stored form.
func encodeRevision(r Revision) (string, error) {
	rec := record{
		Number: r.Number, Root: r.Root, Time: r.Time, Author: r.Author, Message: r.Message,
		RequestID: r.RequestID, Resources: r.Resources, Changes: r.Changes,
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	rec.Sum = hex.EncodeToString(sum[:])
	data, err = json.Marshal(rec)
	return string(data), err
}

// decodeRevision reverses encodeRevision.
func decodeRevision(key string, data []byte) (Revision, error) {
	corrupt := func(root, detail string) error {
		return fmt.Errorf("store: %w", &CorruptError{Name: "revision at " + key, Hash: root, Detail: detail})
	}
	var rec record
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&rec); err != nil {
		return Revision{}, corrupt("", err.Error())
	}
	if _, err := parseHash(rec.Root); err != nil || rec.Number < 1 {
		return Revision{}, corrupt(rec.Root, "it has no number or no root")
	}
	if sum := rec.Sum; sum != "" {
		rec.Sum = ""
		plain, err := json.Marshal(rec)
		if got := sha256.Sum256(plain); err != nil || hex.EncodeToString(got[:]) != sum {
			return Revision{}, corrupt(rec.Root, "the record does not match its checksum")
		}
	}
	return Revision{
		Number: rec.Number, Root: rec.Root, Time: rec.Time, Author: rec.Author, Message: rec.Message,
		RequestID: rec.RequestID, Resources: rec.Resources, Changes: rec.Changes,
	}, nil
}

// EncodeRevision returns a revision as text, with a checksum; DecodeRevision reverses it.
func EncodeRevision(r Revision) (string, error) { return encodeRevision(r) }

// DecodeRevision reverses EncodeRevision.
func DecodeRevision(text []byte) (Revision, error) { return decodeRevision("the backup", text) }

// newestRecord stands in for a head that is damaged, or missing: each commit writes its
// record twice, under the head and under its number, in one transaction. It is revision 0,
// with the given error, when there is no record.
func (s *etcdStore) newestRecord(ctx context.Context, damage error) (Revision, error) {
	resp, err := s.get(ctx, s.key("r", ""), prefixEnd(s.key("r", "")), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(1))
	if err != nil {
		return Revision{}, err
	}
	if len(resp.Kvs) == 0 {
		return Revision{}, damage
	}
	rev, err := s.decodeNumbered(string(resp.Kvs[0].Key), resp.Kvs[0].Value)
	if err != nil {
		return Revision{}, errors.Join(damage, err)
	}
	s.opts.Logger.Warn("store: the head is damaged or missing; its second copy is used", "revision", rev.Number, "error", damage)
	return rev, nil
}

// decodeNumbered decodes a record that lies under its number.
func (s *etcdStore) decodeNumbered(key string, data []byte) (Revision, error) {
	rev, err := decodeRevision(key, data)
	if err == nil && key != s.revisionKey(rev.Number) {
		err = fmt.Errorf("store: %w", &CorruptError{Name: "revision at " + key, Hash: rev.Root, Detail: fmt.Sprintf("it is the record of revision %d", rev.Number)})
	}
	return rev, err
}

// revision reads one revision record.
func (s *etcdStore) revision(ctx context.Context, number int64) (Revision, error) {
	resp, err := s.get(ctx, s.revisionKey(number))
	if err != nil {
		return Revision{}, err
	}
	if len(resp.Kvs) == 0 {
		return Revision{}, fmt.Errorf("store: %w: %d does not exist or is no longer kept", ErrNotFound, number)
	}
	rev, damage := s.decodeNumbered(s.revisionKey(number), resp.Kvs[0].Value)
	if damage == nil {
		return rev, nil
	}
	// The record of the head has a second copy.
	resp, err = s.get(ctx, s.headKey())
	if err != nil {
		return Revision{}, err
	}
	if len(resp.Kvs) > 0 {
		if head, err := decodeRevision(s.headKey(), resp.Kvs[0].Value); err == nil && head.Number == number {
			return head, s.mendRecord(ctx, head)
		}
	}
	return Revision{}, damage
}

// mendRecord writes the record of the head again under its number.
func (s *etcdStore) mendRecord(ctx context.Context, head Revision) error {
	if s.opts.KeepDamage {
		return nil
	}
	value, err := encodeRevision(head)
	if err == nil {
		_, err = s.txn(ctx, nil, []clientv3.Op{clientv3.OpPut(s.revisionKey(head.Number), value)}, nil)
	}
	if err == nil {
		s.opts.Logger.Warn("store: a damaged record was mended from its second copy", "revision", head.Number)
	}
	return err
}

// decodeRevisions decodes a range of revision records. Of one that is damaged the number
// is left, and what is wrong.
func (s *etcdStore) decodeRevisions(resp *clientv3.GetResponse) []Revision {
	out := make([]Revision, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		r, err := s.decodeNumbered(string(kv.Key), kv.Value)
		if err != nil {
			number, perr := strconv.ParseInt(strings.TrimPrefix(string(kv.Key), s.key("r", "")), 10, 64)
			if perr != nil {
				continue // not a record
			}
			r = Revision{Number: number, Damaged: err.Error()}
		}
		out = append(out, r)
	}
	return out
}
