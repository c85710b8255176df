package keeper

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/penstock-gateway/penstock/internal/flock"
	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// The file of a kept configuration is a log of sealed records behind a header in
// clear text: the format, whose it is, and a salt.
//
// Each file has a key of its own, derived (RFC 5869) from the key file and all of the
// header, so the counter of the records is a nonce that is never used twice, and a
// record that is changed, moved, repeated or taken from another file does not open. A
// record is its length, sealed, and then itself, sealed: a log that ends in the middle
// of one was being written when the process ended, and ends before it. What nothing in a
// file can show is that its end was cut off by somebody: it then holds an earlier
// configuration that was acknowledged, too.
const (
	fileName = "configuration.kept"
	keyName  = "configuration.key"
	// unfinishedName matches the names of files that are being written.
	unfinishedName = ".kept-*"

	magic    = "penstock kept configuration 1"
	saltSize = 32
	keySize  = 32
	// recordLimit is about how many bytes of resources go into one record.
	recordLimit = 4 << 20
	// maxRecord is more than one resource and its frame may have.
	maxRecord = 1 << 30
)

// Kinds of records.
const (
	recordResources = 'r' // a DeltaDiscoveryResponse, as acknowledged
	recordContact   = 'c' // the control plane was there
)

// record is an entry of the log.
type record struct {
	kind byte
	time time.Time
	body []byte
}

// errForeign is the error of a file that belongs to another proxy.
var errForeign = errors.New("is the configuration of another proxy")

// openKey reads the key file, or makes it, and locks it, so that two processes do not
// keep one configuration.
func openKey(dir string) (key []byte, f *os.File, err error) {
	path := filepath.Join(dir, keyName)
	if err := keyfile.Check(path); err != nil {
		return nil, nil, err
	}
	if f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := flock.Take(f); err != nil {
		return nil, nil, fmt.Errorf("%s is in use: another process keeps the configuration of this proxy", path)
	}
	if key, err = io.ReadAll(io.LimitReader(f, keySize+1)); err != nil {
		return nil, nil, err
	}
	switch len(key) {
	case keySize:
		return key, f, nil
	case 0:
		key = make([]byte, keySize)
		_, _ = rand.Read(key)
		_, err = f.WriteAt(key, 0)
		return key, f, errors.Join(err, f.Sync())
	}
	return nil, nil, fmt.Errorf("%s does not hold %d bytes: remove it, and %s, which cannot be opened without it", path, keySize, filepath.Join(dir, fileName))
}

// header is the clear text at the beginning of a file.
func header(identity string, salt []byte) []byte {
	return append([]byte(magic+"\n"+identity+"\n"), salt...)
}

func newAEAD(key, header, salt []byte) (cipher.AEAD, error) {
	k, err := hkdf.Key(sha256.New, key, salt, string(header), keySize)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(k)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// sealer seals or opens the records of one file in turn.
type sealer struct {
	aead cipher.AEAD
	n    uint64
}

func (s *sealer) nonce() []byte {
	out := make([]byte, s.aead.NonceSize())
	binary.BigEndian.PutUint64(out[len(out)-8:], s.n)
	s.n++
	return out
}

// seal is a record as it stands in the file.
func (s *sealer) seal(r record) []byte {
	plain := make([]byte, 9, 9+len(r.body))
	plain[0] = r.kind
	binary.BigEndian.PutUint64(plain[1:], uint64(r.time.UnixNano()))
	plain = append(plain, r.body...)
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(plain)))
	out := s.aead.Seal(nil, s.nonce(), length[:], nil)
	return s.aead.Seal(out, s.nonce(), plain, nil)
}

// open takes the next record off b. done tells that b holds no whole one.
func (s *sealer) open(b []byte) (r record, rest []byte, done bool, err error) {
	frame := 4 + s.aead.Overhead()
	if len(b) < frame {
		return r, nil, true, nil
	}
	length, err := s.aead.Open(nil, s.nonce(), b[:frame], nil)
	if err != nil {
		return r, nil, false, errors.New("was altered")
	}
	n := int(binary.BigEndian.Uint32(length)) + s.aead.Overhead()
	if b = b[frame:]; len(b) < n {
		return r, nil, true, nil
	}
	plain, err := s.aead.Open(nil, s.nonce(), b[:n], nil)
	if err != nil || len(plain) < 9 {
		return r, nil, false, errors.New("was altered")
	}
	r = record{kind: plain[0], time: time.Unix(0, int64(binary.BigEndian.Uint64(plain[1:]))), body: plain[9:]}
	return r, b[n:], false, nil
}

// readLog returns the records of a file; none when there is no file.
func readLog(path, identity string, key []byte) ([]record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	first, rest, _ := strings.Cut(string(b[:min(len(b), 4096)]), "\n")
	whose, _, found := strings.Cut(rest, "\n")
	at := len(first) + len(whose) + 2
	if first != magic || !found || len(b) < at+saltSize {
		return nil, fmt.Errorf("%s is not a configuration that this version of Penstock keeps", path)
	}
	if whose != identity {
		return nil, fmt.Errorf("%s %w: of %s, and this is %s", path, errForeign, whose, identity)
	}
	head := b[:at+saltSize]
	aead, err := newAEAD(key, head, head[at:])
	if err != nil {
		return nil, err
	}
	var out []record
	s := &sealer{aead: aead}
	for b = b[len(head):]; ; {
		r, rest, done, err := s.open(b)
		if err != nil {
			return nil, fmt.Errorf("%s %w, or was sealed with another %s", path, err, keyName)
		}
		if done {
			return out, nil
		}
		out, b = append(out, r), rest
	}
}

// logFile is a file that is being written.
type logFile struct {
	f      *os.File
	sealer sealer
	size   int64
	dirty  bool
}

// createLog writes a new file with some records in the place of the one that is there,
// which it replaces as a whole or not at all.
func createLog(path, identity string, key []byte, records iter.Seq2[record, error]) (_ *logFile, err error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt)
	head := header(identity, salt)
	aead, err := newAEAD(key, head, salt)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(path), unfinishedName) // mode 0600
	if err != nil {
		return nil, err
	}
	l := &logFile{f: f, sealer: sealer{aead: aead}}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	n, err := f.Write(head)
	if err != nil {
		return nil, err
	}
	l.size = int64(n)
	for r, err := range records {
		if err == nil {
			err = l.append(r)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := l.sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return nil, err
	}
	return l, syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// append writes a record. It survives the end of this process at once, and that of the
// machine after the next sync.
func (l *logFile) append(r record) error {
	n, err := l.f.Write(l.sealer.seal(r))
	l.size += int64(n)
	l.dirty = true
	return err
}

func (l *logFile) sync() error {
	if !l.dirty {
		return nil
	}
	l.dirty = false
	return l.f.Sync()
}

func marshalRecord(r *discoveryv3.DeltaDiscoveryResponse) ([]byte, error) {
	b, err := proto.Marshal(r)
	if err == nil && len(b) > maxRecord {
		err = fmt.Errorf("%d bytes of resources in one response are more than can be kept", len(b))
	}
	return b, err
}
