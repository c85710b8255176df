package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// maxFlipBytes bounds the content in which a flipped bit is looked for: that costs eight
// hashes a byte.
const maxFlipBytes = 16 << 10

// mend finds the right content of an object that is damaged, and writes it: nil when it is
// not to be had. What it finds has the hash of the object, so it is never wrong.
func (s *etcdStore) mend(ctx context.Context, name string, h hash, damaged []byte) []byte {
	if s.opts.KeepDamage {
		return nil
	}
	right, how := flipped(h, damaged), "one bit of it had changed"
	if right == nil && s.embedded != nil {
		right, how = loggedObjects(s.opts.DataDir, s.key("o", ""))[h], "the log of changes still has it"
	}
	if right == nil {
		return nil
	}
	if err := s.write(ctx, []blob{{h, right}}); err != nil {
		s.opts.Logger.Error("store: damaged content was found elsewhere, and cannot be written back", "object", name, "sha256", h.String(), "error", err)
	} else {
		s.mu.Lock()
		delete(s.damaged, h)
		s.mu.Unlock()
		s.opts.Logger.Warn("store: damaged content was mended: "+how+"; check the disk and the memory of this machine", "object", name, "sha256", h.String())
	}
	return right
}

// flipped undoes the change of one bit: nil when it was another damage.
func flipped(h hash, data []byte) []byte {
	if len(data) == 0 || len(data) > maxFlipBytes {
		return nil
	}
	out := append([]byte(nil), data...)
	for i := range out {
		for bit := range 8 {
			out[i] ^= 1 << bit
			if sha256.Sum256(out) == h {
				return out
			}
			out[i] ^= 1 << bit
		}
	}
	return nil
}

// loggedObjects are the objects below a prefix that are in the log of an embedded etcd, by
// hash. What it cannot read, it leaves out.
func loggedObjects(dataDir, prefix string) map[hash][]byte {
	out := map[hash][]byte{}
	logged(dataDir, prefix, func(key string, value []byte) {
		if h, err := parseHash(key); err == nil && sha256.Sum256(value) == h {
			out[h] = value
		}
	})
	return out
}

// logged calls visit for each value below a prefix that the log of an embedded etcd puts,
// the oldest first, with the rest of its key. What it cannot read, it leaves out.
func logged(dataDir, prefix string, visit func(key string, value []byte)) {
	put := func(p *etcdserverpb.PutRequest) {
		if key, ok := strings.CutPrefix(string(p.GetKey()), prefix); ok {
			visit(key, p.GetValue())
		}
	}
	entries, _ := logEntries(filepath.Join(dataDir, "etcd", "member", "wal"))
	for _, e := range entries {
		var req etcdserverpb.InternalRaftRequest
		if e.GetType() != raftpb.EntryNormal || proto.Unmarshal(e.GetData(), &req) != nil {
			continue
		}
		if p := req.GetPut(); p != nil {
			put(p)
		}
		for _, op := range req.GetTxn().GetSuccess() {
			if p := op.GetRequestPut(); p != nil {
				put(p)
			}
		}
	}
}

// logEntries reads all entries that the files of a log still have. etcd itself starts at
// the last snapshot.
func logEntries(dir string) ([]*raftpb.Entry, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) == 0 {
		return nil, errors.Join(err, os.ErrNotExist)
	}
	var sequence, first uint64
	if _, err := fmt.Sscanf(filepath.Base(names[0]), "%016x-%016x.wal", &sequence, &first); err != nil {
		return nil, err
	}
	w, err := wal.OpenForRead(zap.NewNop(), dir, &walpb.Snapshot{Index: &first, Term: new(uint64)})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if errors.Is(err, wal.ErrSnapshotNotFound) || errors.Is(err, wal.ErrSnapshotMismatch) {
		err = nil // it was not meant to begin at one
	}
	return entries, err
}
