package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Run-time state is not reached from a hash, as objects are. So each value has a tag of
// its own: an HMAC (RFC 2104) of its key in etcd and its content, under a key derived from the
// seal key. A tag does not tell that a value was removed, or that an earlier one was put
// back. Where that would give somebody a right, a list has the tags of all values
// (docs/decisions/0035).

const (
	// tagMagic begins each value that has a tag.
	tagMagic = "\x01ps1"
	// listedTag is how much of a tag is in a list.
	listedTag = 16
	// listBuckets is into how many lists a part is divided, so that a change writes little.
	listBuckets = 16
)

// listedParts are the parts of the run-time state that are listed, by their prefix.
var listedParts = []string{"access/", "join/", "revoked/"}

// openTagKey takes the place of a key in a store without a seal key: tags are checksums then.
var openTagKey = []byte("penstock: no key, a checksum")

var (
	errNoTag   = errors.New("it has no tag: it was written by an earlier version, or by somebody without the seal key")
	errAltered = errors.New("it does not match its tag: it was altered, or written by somebody without the seal key")
)

// tag is that of a value below a key of etcd.
func (s *sealer) tag(key string, value []byte) []byte {
	secret := openTagKey
	if s != nil {
		secret = s.state
	}
	mac := hmac.New(sha256.New, secret)
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(key)))
	mac.Write(size[:])
	mac.Write([]byte(key))
	mac.Write(value)
	return mac.Sum(nil)
}

// tagged is a value with its tag, as it is stored.
func (s *sealer) tagged(key string, value []byte) string {
	var b strings.Builder
	b.WriteString(tagMagic)
	b.Write(s.tag(key, value))
	b.Write(value)
	return b.String()
}

// untag checks what is stored below a key. listed is what a list has of its tag.
func (s *sealer) untag(key string, stored []byte) (value []byte, listed string, err error) {
	rest, ok := bytes.CutPrefix(stored, []byte(tagMagic))
	if !ok {
		return nil, "", errNoTag
	}
	if len(rest) < sha256.Size {
		return nil, "", errAltered
	}
	tag, value := rest[:sha256.Size], rest[sha256.Size:]
	if !hmac.Equal(tag, s.tag(key, value)) {
		return nil, "", errAltered
	}
	return value, listedForm(tag), nil
}

func listedForm(tag []byte) string { return base64.RawStdEncoding.EncodeToString(tag[:listedTag]) }

// haveTags is an error when tags can be neither made nor checked.
func (s *etcdStore) haveTags() error {
	if s.keyless {
		return fmt.Errorf("store: %w: run-time state has tags that are checked with the seal key, and the store was opened without it", ErrSealKey)
	}
	return nil
}

// list names one list: a bucket of a part.
type list struct {
	part   string
	bucket int
}

// listOf is the list that a key belongs into; false when it is in none.
func listOf(key string) (list, bool) {
	for _, part := range listedParts {
		if strings.HasPrefix(key, part) {
			sum := sha256.Sum256([]byte(key))
			return list{part, int(sum[0]) % listBuckets}, true
		}
	}
	return list{}, false
}

// listsOf are all lists that have to do with a prefix of keys.
func listsOf(prefix string) []list {
	var out []list
	for _, part := range listedParts {
		if strings.HasPrefix(part, prefix) || strings.HasPrefix(prefix, part) {
			for b := range listBuckets {
				out = append(out, list{part, b})
			}
		}
	}
	return out
}

// listing is the content of a list.
type listing struct {
	// Changes counts the changes of the list.
	Changes int64 `json:"changes"`
	// Tags are those of the values, by key.
	Tags map[string]string `json:"tags"`
}

func (s *etcdStore) encodeListing(l list, c listing) (string, error) {
	b, err := json.Marshal(c)
	return s.seal.tagged(s.listKey(l), b), err
}

func (s *etcdStore) decodeListing(l list, stored []byte) (listing, error) {
	b, _, err := s.seal.untag(s.listKey(l), stored)
	if err != nil {
		return listing{}, fmt.Errorf("the list of its values: %w", err)
	}
	var c listing
	if err := json.Unmarshal(b, &c); err != nil {
		return listing{}, fmt.Errorf("the list of its values: %w", err)
	}
	return c, nil
}
