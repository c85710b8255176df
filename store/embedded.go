package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/penstock-gateway/penstock/internal/flock"
)

// embedded is an etcd inside this process. It listens nowhere: the client calls the
// server's functions.
type embedded struct {
	lock   *os.File
	etcd   *embed.Etcd
	client *clientv3.Client
	space  *space
}

// startEmbedded starts etcd in o.DataDir and waits until it serves.
func startEmbedded(ctx context.Context, o Options) (_ *embedded, err error) {
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("store: data directory: %w", trouble(err))
	}
	e := new(embedded)
	if e.lock, err = lockDir(o.DataDir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.close())
		}
	}()
	if err := makeRoom(o.DataDir); err != nil {
		return nil, fmt.Errorf("store: embedded etcd does not start: %w", err)
	}
	config, giveUp := embeddedConfig(o)
	if e.etcd, err = startEtcd(config, giveUp); err != nil {
		return nil, fmt.Errorf("store: embedded etcd in %s does not start: %w", o.DataDir, err)
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err := <-e.etcd.Err():
		return nil, fmt.Errorf("store: embedded etcd in %s stopped while starting: %w", o.DataDir, err)
	case <-ctx.Done():
		return nil, fmt.Errorf("store: embedded etcd in %s: %w", o.DataDir, ctx.Err())
	case <-time.After(max(o.RequestTimeout, time.Minute)): // replay of a long log on a slow disk
		return nil, fmt.Errorf("store: embedded etcd in %s is not ready after a minute", o.DataDir)
	}
	giveUp.started.Store(true)
	e.client = v3client.New(e.etcd.Server)
	e.space = &space{dir: o.DataDir, log: o.Logger, used: e.etcd.Server.Backend().Size}
	return e, nil
}

// startEtcd is embed.StartEtcd with its panics, about files that are damaged, as errors.
func startEtcd(c *embed.Config, giveUp *fatal) (e *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			e = nil
			if cause := giveUp.cause.Load(); cause != nil {
				err = explain(*cause)
			} else {
				err = explain(fmt.Errorf("%v", p))
			}
		}
	}()
	if err := readable(c.Dir); err != nil {
		return nil, explain(err)
	}
	// etcd reads the database in goroutines of its own, where its panic would be the end of
	// the process.
	var index uint64
	db := filepath.Join(c.Dir, "member", "snap", "db")
	if _, err := os.Stat(db); err == nil {
		if index, err = checkDatabase(db); err != nil {
			return nil, explain(err)
		}
	}
	if log := filepath.Join(c.Dir, "member", "wal"); wal.Exist(log) {
		if err := checkLog(log, index); err != nil {
			return nil, err
		}
	}
	if e, err = embed.StartEtcd(c); err != nil {
		err = trouble(err)
	}
	return e, err
}

// damagedFiles is what to do about them.
const damagedFiles = "its files are damaged: " + HowToRepair

// HowToRepair ends errors about damage that keeps a store from being used.
const HowToRepair = "penstock store check says what is damaged, and penstock store repair mends what it can and keeps a copy; or restore a backup (penstock restore)"

// embeddedConfig is for one member that holds some ten thousand small objects.
func embeddedConfig(o Options) (*embed.Config, *fatal) {
	c := embed.NewConfig()
	c.Dir = filepath.Join(o.DataDir, "etcd")
	c.Name = "penstock"
	// No listeners at all. The advertised addresses are only names: there is no peer.
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	c.ListenPeerUrls, c.ListenClientUrls = nil, nil
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = []url.URL{nowhere}, []url.URL{nowhere}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.EnableGRPCGateway = false
	// A lone member elects itself after one election timeout; nobody needs a long one.
	c.TickMs, c.ElectionMs = 100, 500
	// The log is replayed from the last snapshot and what is in memory of it serves
	// followers, of which there are none; a commit puts some 20 kB into it.
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1000, 10
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	// What is durable is in the log: its application to the database file costs two
	// more syncs each time, and is repeated after a crash.
	c.BackendBatchInterval = time.Second
	// Only the head and run-time state have old versions: revisions are our own.
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModeRevision, "1000"
	c.QuotaBackendBytes = 4 << 30
	c.BootstrapDefragThresholdMegabytes = 64
	c.AuthToken = ""
	log := o.Logger.With(slog.String("component", "etcd"))
	giveUp := &fatal{log: o.Logger, dir: o.DataDir, exit: os.Exit}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapWith(log, giveUp))
	return c, giveUp
}

// shrink forgets versions of keys before an etcd revision and gives back disk space
// when more than half of much is unused. Defragmenting holds up writes meanwhile.
func (e *embedded) shrink(ctx context.Context, revision int64) error {
	if _, err := e.client.Compact(ctx, revision, clientv3.WithCompactPhysical()); err != nil {
		return fmt.Errorf("store: compact: %w", err)
	}
	be := e.etcd.Server.Backend()
	if size := be.Size(); size < 64<<20 || e.inUse() > size/2 {
		return nil
	}
	if err := be.Defrag(); err != nil {
		return fmt.Errorf("store: defragment: %w", err)
	}
	return nil
}

// inUse is how many bytes of the database are not free.
func (e *embedded) inUse() int64 {
	be := e.etcd.Server.Backend()
	be.ForceCommit() // bbolt counts pages as free one transaction
	be.ForceCommit() // after they were let go
	return be.SizeInUse()
}

// close stops etcd and gives the directory free.
func (e *embedded) close() error {
	if e.etcd != nil {
		e.etcd.Close()
	}
	return flock.Close(e.lock)
}

// lockDir takes the directory for this process. The kernel lets go of the lock when
// the process dies, however it does.
func lockDir(dir string) (*os.File, error) {
	name := filepath.Join(dir, "store.lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: data directory: %w", trouble(err))
	}
	if err := flock.Take(f); err != nil {
		pid, _ := os.ReadFile(name)
		f.Close()
		if errors.Is(err, flock.ErrLocked) {
			return nil, fmt.Errorf("store: %s: %w (process %s): stop it or use another directory", dir, ErrInUse, strings.TrimSpace(string(pid)))
		}
		return nil, fmt.Errorf("store: lock %s: %w", name, err)
	}
	// Always as long, so that a full disk has the space.
	if _, err := f.WriteAt(fmt.Appendf(nil, "%-19d\n", os.Getpid()), 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("store: lock %s: %w", name, trouble(err))
	}
	return f, nil
}
