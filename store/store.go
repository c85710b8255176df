// Package store keeps the configuration as a line of revisions in etcd, embedded
// or external, so that a change of any size is atomic, history is cheap and a
// rollback is one small write.
//
// A revision is a tree of content hashes, as in git: objects by hash, 1024 buckets
// by the hash of the resource name, 32 groups of buckets, a root that lists the groups,
// and a head that is flipped by one compare-and-swap. What is not reachable from a revision is
// garbage and harms nobody. README.md in this folder describes the keys.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Revision describes one immutable state of the whole configuration.
type Revision struct {
	// Number counts up from 1 without gaps. 0 is the empty configuration before
	// the first commit.
	Number int64
	// Root is the SHA-256 of the tree in hex: equal roots are equal contents.
	Root string
	// Time is when the revision was committed. It never runs backwards from one
	// revision to the next.
	Time time.Time
	// Author, Message and RequestID are what the committer gave.
	Author, Message, RequestID string
	// Resources is how many the revision holds.
	Resources int
	// Changes is in how many resources it differs from the revision before.
	Changes int
	// Damaged says what is wrong with the record of a revision, of which only the
	// number is known then; "" when nothing is.
	Damaged string
}

// Change sets or deletes one resource.
type Change struct {
	// Name is the full name, as in projects/p/routes/r.
	Name string
	// Resource is the new content; nil deletes.
	Resource *pb.Resource
}

// Info is what a committer says of a commit.
type Info struct {
	// Author is who, at most 1 KiB.
	Author string
	// Message is why, at most 16 KiB.
	Message string
	// RequestID makes the commit idempotent for an hour (AIP-155), at most 256 bytes.
	RequestID string
}

// Store is a line of revisions and, beside it, run-time state that makes none.
//
// All methods are safe for concurrent use, end when ctx does, and see only whole
// revisions. Without a deadline in ctx every exchange with etcd is still bounded.
type Store interface {
	// Head returns the newest revision; the zero Revision when there is none yet.
	Head(ctx context.Context) (Revision, error)
	// Get returns one revision: ErrNotFound when there is no such number or it is
	// no longer kept.
	Get(ctx context.Context, number int64) (Revision, error)
	// Load returns the whole content of a revision, sorted by name; nothing for
	// revision 0. Objects that are damaged are left out and named in the error, a
	// *DamageError, all of them, beside the good ones: a caller may carry on with
	// those. So are those that cannot be unsealed, in an ErrSealKey.
	Load(ctx context.Context, number int64) ([]*pb.Resource, error)
	// Commit makes the revision base+1 from base, all changes or none. When the head
	// is no longer base it returns *ConflictError. Deleting what is not there and
	// setting what is already so are not changes; when nothing is left the head is
	// returned and no revision made. A RequestID used within the last hour returns
	// the revision it made, and changes nothing. Each resource may appear once.
	// An error of ctx or of the network leaves open whether the commit happened:
	// ask ByRequest.
	Commit(ctx context.Context, base int64, changes []Change, info Info) (Revision, error)
	// Rollback makes the revision base+1 with the content of revision to. When that
	// is what the head holds already the head is returned and no revision made.
	Rollback(ctx context.Context, base, to int64, info Info) (Revision, error)
	// Diff returns the changes that lead from one revision to another, sorted by
	// name, in either direction; 0 is the empty configuration. Its cost follows
	// what differs. Damaged objects are reported as by Load.
	Diff(ctx context.Context, from, to int64) ([]Change, error)
	// List returns revisions below before (0: from the newest), newest first, at
	// most limit (100 when not positive, never over 1000).
	List(ctx context.Context, before int64, limit int) ([]Revision, error)
	// History returns what revisions below before (0: from the newest) made of one object,
	// newest first: those that changed it, those that cannot be read, and the oldest that is
	// kept when the object is in it. There are at most limit (100 when not positive); next
	// is before for the rest, 0 when there is none. It looks at 1,000 revisions at most, so
	// fewer than limit, even none, may come with a next.
	History(ctx context.Context, name string, before int64, limit int) (editions []Edition, next int64, err error)
	// ByRequest returns the revision that a request id made within the last hour.
	ByRequest(ctx context.Context, requestID string) (Revision, bool, error)
	// Watch sends every revision above from, in order, and goes on with new ones as
	// they come. Revisions no longer kept are passed over: the first sent may then be
	// above from+1, which Diff from an older one would report as ErrNotFound. The
	// channel is closed when ctx ends or the store is closed.
	Watch(ctx context.Context, from int64) <-chan Revision
	// PutState sets one run-time value, at most 1 MiB.
	PutState(ctx context.Context, key string, value []byte) error
	// State returns all run-time values whose key begins with prefix. What is damaged is
	// left out, and logged.
	State(ctx context.Context, prefix string) (map[string][]byte, error)
	// ReadState is State, and says what is damaged: for those to whom a value that is not
	// there means that something is allowed.
	ReadState(ctx context.Context, prefix string) (StateValues, error)
	// ReadKey is ReadState for one key, at a cost that does not follow how many others there
	// are.
	ReadKey(ctx context.Context, key string) (StateValues, error)
	// DeleteState removes one run-time value; no error when there is none.
	DeleteState(ctx context.Context, key string) error
	// Seal encrypts what must not stand in the store as it is, for PutState; Unseal
	// reverses it, for the same name only. Without a seal key both are ErrSealKey.
	Seal(name string, plain []byte) ([]byte, error)
	Unseal(name string, sealed []byte) ([]byte, error)
	// Pin returns the value that the store has under a name, "" for none. When it has
	// none and value is not empty, value is it from now on. It is for what must stay
	// the same for the life of the store, such as which certificate authority its
	// proxies know. Repin replaces it, when it still is old.
	Pin(ctx context.Context, name, value string) (string, error)
	Repin(ctx context.Context, name, old, value string) error
	// Export returns the newest revision, or all that are kept, as they are stored.
	Export(ctx context.Context, history bool) (*Export, error)
	// Import fills a store that is empty with what Export returned.
	Import(ctx context.Context, e *Export) error
	// DecodeExported returns the resources of a revision of an Export whose objects are
	// given by their hash.
	DecodeExported(revision Revision, objects map[string][]byte) ([]Change, error)
	// WatchState sends a signal after run-time values below prefix were put or
	// deleted, and one at the beginning; signals that nobody waits for are merged.
	// The channel is closed when ctx ends.
	WatchState(ctx context.Context, prefix string) <-chan struct{}
	// Refusing is why the store takes no changes at present (ErrNoSpace), and since when
	// that is known; nil when it does. Of an external etcd only a change tells.
	Refusing() (since time.Time, err error)
	// Close ends all watches and, when etcd is embedded, stops it.
	Close() error
}

// Options say where the store is.
type Options struct {
	// DataDir holds the embedded etcd; used when Endpoints is empty. Only one
	// process may have it open.
	DataDir string
	// Endpoints of an external etcd cluster, as in https://10.0.0.1:2379.
	Endpoints []string
	// TLS for the Endpoints; nil is plaintext.
	TLS *tls.Config
	// Prefix of all keys, without a slash at its end; default "/penstock".
	Prefix string
	// SealKey is the 32-byte AES-256 key that secrets are sealed with. Without one
	// secrets can be neither written nor read.
	SealKey []byte
	// SealKeyFile is the file of that key, in place of SealKey. It is made when it is
	// not there and this store was never opened with a key.
	SealKeyFile string
	// Footprint returns what must be known of a resource when it can no longer be read,
	// nil for nothing. It is kept apart from the resource and comes back in CorruptError.
	// What is larger than MaxFootprintBytes is left out. The default keeps nothing.
	Footprint func(*pb.Resource) []byte
	// AdoptState takes over the run-time state that an earlier version wrote to an external
	// etcd without tags. Whoever can write to that etcd may have changed it.
	AdoptState bool
	// KeepDamage leaves damaged content as it is, for those who look for it. Else it is
	// mended when it is read, where its right content can be found.
	KeepDamage bool
	// KeepRevisions is how many revisions are kept; default 1000, at least 2.
	KeepRevisions int
	// MaintenanceInterval is how often old revisions and unreachable objects are
	// looked for; default 10 minutes, negative never.
	MaintenanceInterval time.Duration
	// RequestTimeout bounds one exchange with etcd; default 10 s.
	RequestTimeout time.Duration
	// Logger; default slog.Default().
	Logger *slog.Logger
}

// Limits that follow from etcd's defaults (128 operations and 1.5 MiB a request).
const (
	// MaxObjectBytes is the most that one stored resource or state value may take.
	MaxObjectBytes = 1 << 20

	// MaxFootprintBytes is the most that Options.Footprint may return for a resource:
	// footprints are written with every change beside them.
	MaxFootprintBytes = 4 << 10

	maxFootprintBytes = MaxFootprintBytes
	maxAuthorBytes    = 1 << 10
	maxMessageBytes   = 16 << 10
	maxRequestIDBytes = 256
	maxNameBytes      = 1 << 10
	maxStateKeyBytes  = 1 << 10

	defaultList = 100
	maxList     = 1000
)

var (
	// ErrNotFound is a revision that does not exist or is no longer kept.
	ErrNotFound = errors.New("no such revision")
	// ErrInvalid is an argument that no retry will mend.
	ErrInvalid = errors.New("invalid argument")
	// ErrSealKey is a seal key that is missing or not the one that was used.
	ErrSealKey = errors.New("seal key")
	// ErrState is run-time state that is damaged, or was written by somebody without the
	// seal key.
	ErrState = errors.New("run-time state")
	// ErrInUse is a data directory that another process has open.
	ErrInUse = errors.New("data directory is in use by another control plane")
	// ErrNoSpace is a disk, a quota or an etcd that is full. Reads go on, and so do
	// writes once there is space.
	ErrNoSpace = errors.New("no space left")
	// ErrNewer is a store, or a resource, that a newer version of Penstock has written.
	ErrNewer = errors.New("written by a newer version of Penstock")
	// ErrUncertain is an exchange with etcd that was interrupted: its outcome is not known.
	ErrUncertain = errors.New("are most of its members there?")
	// ErrClosed is a store after Close.
	ErrClosed = errors.New("store is closed")
)

// ConflictError says that the head was not the base of a commit.
type ConflictError struct {
	// Base is what the committer built on, Head what the head is.
	Base, Head int64
}

// Error implements error.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("revision %d is not the head any more, %d is: read it and apply the change again", e.Base, e.Head)
}

// CorruptError is content that is missing or does not match its hash.
type CorruptError struct {
	// Name is the resource, or "bucket N" or "root" of the tree.
	Name string
	// Hash is the SHA-256 it is stored under, in hex.
	Hash string
	// Detail says what is wrong with it.
	Detail string
	// Footprint is what Options.Footprint returned for the resource; nil when nothing was
	// kept.
	Footprint []byte
	// Newer tells that it is whole, and that a newer version of Penstock wrote it.
	Newer bool
}

// Is makes one of a newer version an ErrNewer.
func (e *CorruptError) Is(target error) bool { return e.Newer && target == ErrNewer }

// Error implements error.
func (e *CorruptError) Error() string {
	if e.Newer {
		return fmt.Sprintf("stored object %s (sha256 %s) was written by a newer version of Penstock: %s", e.Name, e.Hash, e.Detail)
	}
	return fmt.Sprintf("stored object %s (sha256 %s) is damaged: %s", e.Name, e.Hash, e.Detail)
}

// DamageError lists resources that cannot be read any more, while everything else can.
type DamageError struct{ Objects []*CorruptError }

// Error implements error.
func (e *DamageError) Error() string {
	var out []string
	for _, o := range e.Objects {
		out = append(out, o.Error())
	}
	return "store: " + strings.Join(out, "\n")
}

// Unwrap makes each of them findable.
func (e *DamageError) Unwrap() []error {
	var out []error
	for _, o := range e.Objects {
		out = append(out, o)
	}
	return out
}

// Open connects to the etcd at Endpoints or, without any, starts one inside this
// process in DataDir. It fails when etcd does not answer within RequestTimeout,
// when another process holds DataDir (ErrInUse), when a newer version wrote it in a form
// that is not known here (ErrNewer), and when the seal key is missing or
// not the one this store was first opened with (ErrSealKey).
func Open(ctx context.Context, o Options) (Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return open(ctx, o)
}

// withDefaults checks the options and fills what was left out.
func (o Options) withDefaults() (Options, error) {
	if o.DataDir == "" && len(o.Endpoints) == 0 {
		return o, fmt.Errorf("store: %w: neither a data directory nor etcd endpoints are given", ErrInvalid)
	}
	if n := len(o.SealKey); n != 0 && n != SealKeyBytes {
		return o, fmt.Errorf("store: %w: the seal key has %d bytes, it must have %d", ErrSealKey, n, SealKeyBytes)
	}
	if o.Prefix == "" {
		o.Prefix = "/penstock"
	}
	if strings.HasSuffix(o.Prefix, "/") {
		return o, fmt.Errorf("store: %w: the prefix %q ends with a slash, which is added to it: leave it out", ErrInvalid, o.Prefix)
	}
	if o.KeepRevisions == 0 {
		o.KeepRevisions = 1000
	}
	if o.KeepRevisions < 2 {
		return o, fmt.Errorf("store: %w: %d revisions to keep, it must be 2 or more", ErrInvalid, o.KeepRevisions)
	}
	if o.MaintenanceInterval == 0 {
		o.MaintenanceInterval = 10 * time.Minute
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o, nil
}
