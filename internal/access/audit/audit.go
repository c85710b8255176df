// Package audit is an append-only log whose records are chained by hashes, in files
// of mode 0600 beside the store. The head of the chain is anchored in the store, so
// that a cut tail is found, too.
//
// Each replica has a chain of its own: they need no agreement about an order, and one
// that is away holds up nobody. The anchors of all are in the store.
package audit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock-gateway/penstock/internal/signal"
)

const (
	// A segment of the log has at most about so many bytes, and so many are kept.
	segmentBytes = 4 << 20
	segmentsKept = 16
	// anchorPrefix + the replica's id holds an anchor, in the store's run-time state.
	anchorPrefix = "audit/"
	// anchorTimeout bounds one exchange with the store.
	anchorTimeout = 5 * time.Second
)

// Object is one that a call changed: its etag before and after; "" where it is not.
type Object struct {
	Name   string `json:"name"`
	Before string `json:"before,omitempty"`
	After  string `json:"after,omitempty"`
}

// Record is one line of the log.
type Record struct {
	Number   int64     `json:"number"`
	Time     time.Time `json:"time"`
	Identity string    `json:"identity,omitempty"`
	Via      string    `json:"via,omitempty"`
	From     string    `json:"from,omitempty"`
	Action   string    `json:"action"`
	Verdict  string    `json:"verdict"`
	Reason   string    `json:"reason,omitempty"`
	Objects  []Object  `json:"objects,omitempty"`
	// Previous is the hash of the record before, Hash that of this one without it.
	Previous string `json:"previous"`
	Hash     string `json:"hash,omitempty"`
}

func (r Record) hash() (string, error) {
	r.Hash = ""
	b, err := json.Marshal(r)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// anchor is what the store knows of a chain.
type anchor struct {
	// Number and Hash are those of the newest record that was anchored.
	Number int64  `json:"number"`
	Hash   string `json:"hash"`
	// First is the number of the oldest record that is kept, Before the hash of the
	// one before it.
	First  int64  `json:"first"`
	Before string `json:"before"`
}

// State is what a Log needs of the store.
type State interface {
	PutState(ctx context.Context, key string, value []byte) error
	State(ctx context.Context, prefix string) (map[string][]byte, error)
}

// Log is the log of one replica. It is safe for concurrent use.
type Log struct {
	dir   string
	state State
	log   *slog.Logger
	now   func() time.Time
	key   string // of the anchor
	// segment and kept are segmentBytes and segmentsKept, but in tests.
	segment int64
	kept    int

	mu     sync.Mutex
	file   *os.File
	size   int64
	head   anchor
	failed error

	syncing sync.Mutex
	synced  int64

	wake signal.Wake
	stop context.CancelFunc
	done sync.WaitGroup
}

// Open opens the log of a folder. What was damaged since it was closed is told to
// the logger and in a record of the log; it never keeps the control plane from
// starting.
func Open(ctx context.Context, dir string, state State, log *slog.Logger, now func() time.Time) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	id, err := replicaID(filepath.Join(dir, "replica"))
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{dir: dir, state: state, log: log, now: now, key: anchorPrefix + id, segment: segmentBytes, kept: segmentsKept, wake: signal.NewWake()}
	problem, err := l.resume(ctx)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	l.done.Go(func() { l.keepAnchored(run) })
	if problem != "" {
		log.Error("the audit log was changed by somebody else", "problem", problem)
		err = l.Append(Record{Action: "open the audit log", Verdict: "failed", Reason: problem})
	}
	return l, err
}

func replicaID(file string) (string, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte(rand.Text())
		err = os.WriteFile(file, b, 0o600)
	}
	return strings.TrimSpace(string(b)), err
}

// resume finds the end of the chain, and what is wrong with it.
func (l *Log) resume(ctx context.Context) (problem string, err error) {
	known, there, err := l.anchored(ctx)
	if err != nil {
		return "", err
	}
	if err := l.dropTorn(); err != nil {
		return "", err
	}
	c := l.check(known)
	if !there && c.problem == "" && c.last > 0 {
		c.problem = unanchored
	} else if !there {
		// So that one that is not there later was lost.
		if err := l.putIn(ctx, anchor{First: 1}); err != nil {
			return "", err
		}
	}
	l.head = anchor{Number: c.last, Hash: c.hash, First: known.First, Before: known.Before}
	if l.head.First == 0 {
		l.head.First = 1
	}
	if c.problem != "" && known.Number > 0 {
		// What follows is chained to what was there, so that the damage stays visible.
		l.head.Number, l.head.Hash = max(c.last, known.Number), known.Hash
	}
	segments, err := l.segments()
	if err != nil {
		return "", err
	}
	name := l.segmentName(l.head.Number + 1)
	if n := len(segments); n > 0 {
		name = segments[n-1]
	}
	if l.file, err = os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return "", err
	}
	info, err := l.file.Stat()
	if err != nil {
		return "", err
	}
	l.size, l.synced = info.Size(), l.head.Number
	return c.problem, nil
}

// dropTorn removes half a line at the end, which a process that died left.
func (l *Log) dropTorn() error {
	segments, err := l.segments()
	if err != nil || len(segments) == 0 {
		return err
	}
	last := segments[len(segments)-1]
	b, err := os.ReadFile(last)
	if err != nil || len(b) == 0 || b[len(b)-1] == '\n' {
		return err
	}
	return os.Truncate(last, int64(bytes.LastIndexByte(b, '\n')+1))
}

func (l *Log) segmentName(first int64) string {
	return filepath.Join(l.dir, fmt.Sprintf("audit-%015d.jsonl", first))
}

func (l *Log) segments() ([]string, error) {
	all, err := filepath.Glob(filepath.Join(l.dir, "audit-*.jsonl"))
	slices.Sort(all)
	return all, err
}

// unanchored is the problem of a log without its anchor.
const unanchored = "the store does not have the anchor of this log (any more), or it is damaged: whether records are missing at the end cannot be told"

// anchored is what the store knows of the chain; there is false when it knows nothing, or
// what it has cannot be read.
func (l *Log) anchored(ctx context.Context) (a anchor, there bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, anchorTimeout)
	defer cancel()
	values, err := l.state.State(ctx, l.key)
	if err != nil {
		return a, false, err
	}
	b, there := values[l.key]
	if there && json.Unmarshal(b, &a) != nil {
		return anchor{}, false, nil
	}
	return a, there, nil
}

// Append adds a record, and returns when it is on disk. Number, time and hashes are
// filled in.
func (l *Log) Append(r Record) error {
	n, err := l.write(r)
	if err == nil {
		err = l.flush(n)
	}
	if err != nil {
		err = fmt.Errorf("the audit log cannot be written: %w", err)
	}
	l.mu.Lock()
	l.failed = err
	l.mu.Unlock()
	l.wake.Set()
	return err
}

// Ready returns why the last record could not be written; nil when it was. It tries
// again.
func (l *Log) Ready() error {
	l.mu.Lock()
	failed := l.failed
	l.mu.Unlock()
	if failed == nil {
		return nil
	}
	return l.Append(Record{Action: "write the audit log", Verdict: "failed", Reason: "records were lost: " + failed.Error()})
}

func (l *Log) write(r Record) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size >= l.segment {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	r = r.bounded()
	r.Number, r.Time, r.Previous = l.head.Number+1, l.now().UTC(), l.head.Hash
	hash, err := r.hash()
	if err != nil {
		return 0, err
	}
	r.Hash = hash
	b, err := json.Marshal(r)
	if err != nil {
		return 0, err
	}
	n, err := l.file.Write(append(b, '\n'))
	if err != nil {
		return 0, errors.Join(err, l.file.Truncate(l.size)) // no half lines
	}
	l.size += int64(n)
	l.head.Number, l.head.Hash = r.Number, r.Hash
	return r.Number, nil
}

// flush waits until a record is on disk. One flush covers all that was written when
// it began.
func (l *Log) flush(number int64) error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if l.synced >= number {
		return nil
	}
	l.mu.Lock()
	file, upTo := l.file, l.head.Number
	l.mu.Unlock()
	if err := file.Sync(); err != nil {
		return err
	}
	l.synced = upTo
	return nil
}

// rotate begins a new segment, and drops the oldest when there are too many: first
// the store hears where the chain begins now. The caller holds mu.
func (l *Log) rotate() error {
	if err := l.file.Sync(); err != nil {
		return err
	}
	f, err := os.OpenFile(l.segmentName(l.head.Number+1), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	if err := l.file.Close(); err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, 0
	all, err := l.segments()
	if err != nil || len(all) <= l.kept {
		return err
	}
	first, err := firstRecord(all[len(all)-l.kept])
	if err != nil {
		return nil // nothing in it yet: next time
	}
	next := l.head
	next.First, next.Before = first.Number, first.Previous
	ctx, cancel := context.WithTimeout(context.Background(), anchorTimeout)
	defer cancel()
	if err := l.put(ctx, next); err != nil {
		l.log.Warn("the oldest part of the audit log stays until the store answers", "error", err)
		return nil
	}
	l.head = next
	for _, old := range all[:len(all)-l.kept] {
		if err := os.Remove(old); err != nil {
			return err
		}
	}
	return nil
}

func firstRecord(file string) (r Record, err error) {
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadBytes('\n')
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

func (l *Log) put(ctx context.Context, a anchor) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return l.state.PutState(ctx, l.key, b)
}

// keepAnchored tells the store of the newest record, as fast as it takes it.
func (l *Log) keepAnchored(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		}
		if err := l.anchorNow(ctx); err != nil && ctx.Err() == nil {
			l.log.Warn("the head of the audit log could not be anchored in the store; the next record will", "error", err)
		}
	}
}

func (l *Log) anchorNow(ctx context.Context) error {
	l.mu.Lock()
	a := l.head
	l.mu.Unlock()
	return l.putIn(ctx, a)
}

// putIn is put within the usual time.
func (l *Log) putIn(ctx context.Context, a anchor) error {
	ctx, cancel := context.WithTimeout(ctx, anchorTimeout)
	defer cancel()
	return l.put(ctx, a)
}

// Close anchors the head and closes the file. The store must still be open.
func (l *Log) Close() error {
	l.stop()
	l.done.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), anchorTimeout)
	defer cancel()
	return errors.Join(l.put(ctx, l.head), l.file.Close())
}

// each calls f with each line, oldest first, until it returns false.
func (l *Log) each(f func(line []byte) bool) error {
	segments, err := l.segments()
	if err != nil {
		return err
	}
	for _, s := range segments {
		more, err := eachLine(s, f)
		if err != nil || !more {
			return err
		}
	}
	return nil
}

func eachLine(file string, f func([]byte) bool) (more bool, err error) {
	in, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // rotated away just now
	}
	if err != nil {
		return false, err
	}
	defer in.Close()
	r := bufio.NewReader(in)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return true, nil // half a line is being written
		}
		if err != nil {
			return false, err
		}
		if !f(line) {
			return false, nil
		}
	}
}

// List returns the newest records that wants takes, oldest first.
func (l *Log) List(limit int, wants func(*Record) bool) ([]Record, error) {
	var out []Record
	err := l.each(func(line []byte) bool {
		var r Record
		if json.Unmarshal(line, &r) == nil && wants(&r) {
			if out = append(out, r); len(out) > 2*limit {
				out = slices.Clone(out[len(out)-limit:])
			}
		}
		return true
	})
	return out[max(0, len(out)-limit):], err
}
