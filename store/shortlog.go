package store

import (
	"fmt"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.uber.org/zap"
)

// shortLog is what to do about a log that is shorter than the database.
const shortLog = "the log was cut off, as after a disk that did not keep what it had confirmed: penstock store repair goes on with what the database has and keeps a copy; or restore a backup (penstock restore)"

// checkLog finds damage of etcd's log before etcd does. What etcd has opened when it
// gives up on its log it never closes: it would go on writing to the directory. And for
// entries that the database has and the log has not it would wait for ever.
func checkLog(dir string, applied uint64) error {
	snapshots, err := wal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil {
		return explain(fmt.Errorf("%s: %w", dir, err))
	}
	from := &walpb.Snapshot{}
	if n := len(snapshots); n > 0 {
		from = snapshots[n-1]
	}
	w, err := wal.OpenForRead(zap.NewNop(), dir, from)
	if err != nil {
		return explain(fmt.Errorf("%s: %w", dir, err))
	}
	defer w.Close()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		return explain(fmt.Errorf("%s: %w", dir, err))
	}
	last := from.GetIndex()
	if n := len(entries); n > 0 {
		last = entries[n-1].GetIndex()
	}
	if last < applied {
		return fmt.Errorf("%s ends at entry %d, and the database has entries up to %d: %d are missing; %s", dir, last, applied, applied-last, shortLog)
	}
	return nil
}
