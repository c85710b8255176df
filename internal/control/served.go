package control

import (
	"context"
	"encoding/binary"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/signal"
)

// servedPrefix is where the store's run-time state keeps when an instance of a version of
// a function was first ready, by the version's name: a version that never served is none
// to go back to, and one to be tried before it is relied on.
const servedPrefix = "served/"

// servedBook knows which versions have served.
type servedBook struct {
	core *Core
	// unsaved wakes run.
	unsaved signal.Wake

	mu sync.Mutex
	at map[string]time.Time // by the name of the version
	// dirty are the versions that the store does not have as they are.
	dirty map[string]bool
}

func newServedBook(c *Core) *servedBook {
	return &servedBook{core: c, unsaved: signal.NewWake(), at: map[string]time.Time{}, dirty: map[string]bool{}}
}

// key is where the store keeps it: the version's name without what all names have.
func servedKey(version string) string { return servedPrefix + strings.TrimPrefix(version, "projects/") }

// load takes over what the store knows.
func (b *servedBook) load(ctx context.Context) error {
	state, err := b.core.store.State(ctx, servedPrefix)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for key, value := range state {
		name := "projects/" + strings.TrimPrefix(key, servedPrefix)
		if len(value) >= 8 && !b.dirty[name] {
			b.at[name] = time.Unix(0, int64(binary.BigEndian.Uint64(value)))
		}
	}
	return nil
}

// follow takes over what other replicas learn.
func (b *servedBook) follow(ctx context.Context) {
	kv.Follow(ctx, b.core.store, servedPrefix, b.core.log, "which versions have served", b.load)
}

// since is when a version first served; zero: it never did.
func (b *servedBook) since(version string) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.at[version]
}

// note keeps the versions that a runner has instances of that are ready, and drops those
// of their functions that are gone. It does not wait for the store.
func (b *servedBook) note(instances []*pb.Instance) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, i := range instances {
		if i.GetState() != pb.InstanceState_INSTANCE_STATE_READY || i.GetVersion() == 0 {
			continue
		}
		function, _ := gateway.FunctionOf(i.GetFunction())
		version := gateway.VersionOf(function, i.GetVersion())
		if _, known := b.at[version]; known {
			continue
		}
		b.at[version], b.dirty[version] = b.core.now(), true
		b.forget(function)
		b.unsaved.Set()
	}
}

// forget drops the versions of a function that are gone. The caller holds mu.
func (b *servedBook) forget(function string) {
	s := b.core.Snapshot()
	prefix := strings.TrimSuffix(gateway.VersionOf(function, 0), "0")
	for version := range b.at {
		number, mine := strings.CutPrefix(version, prefix)
		if _, err := strconv.ParseInt(number, 10, 64); mine && err == nil && s.Get(version) == nil {
			delete(b.at, version)
			b.dirty[version] = true
		}
	}
}

// gone drops what a revision has deleted, of the objects by these names.
func (b *servedBook) gone(deleted []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range deleted {
		if _, known := b.at[name]; known {
			delete(b.at, name)
			b.dirty[name] = true
			b.unsaved.Set()
		}
	}
}

// run brings the store up to date.
func (b *servedBook) run(ctx context.Context) {
	kv.Run(ctx, b.unsaved, b.core.log, "keep which versions have served", b.save)
}

func (b *servedBook) save(ctx context.Context) error {
	for {
		version, at := b.nextDirty()
		if version == "" {
			return nil
		}
		if err := b.saveOne(ctx, version, at); err != nil {
			b.mu.Lock()
			b.dirty[version] = true
			b.mu.Unlock()
			return err
		}
	}
}

// leave saves what is left when this replica ends.
func (b *servedBook) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), lastSave)
	defer cancel()
	if err := b.save(ctx); err != nil {
		b.core.log.Warn("cannot keep which versions have served; what became ready last is not known after a restart", "error", err)
	}
}

// nextDirty takes a version that is to be saved, and since when it served; zero to
// delete it.
func (b *servedBook) nextDirty() (string, time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for version := range b.dirty {
		delete(b.dirty, version)
		return version, b.at[version]
	}
	return "", time.Time{}
}

func (b *servedBook) saveOne(ctx context.Context, version string, at time.Time) error {
	if at.IsZero() {
		return b.core.store.DeleteState(ctx, servedKey(version))
	}
	return b.core.store.PutState(ctx, servedKey(version), binary.BigEndian.AppendUint64(nil, uint64(at.UnixNano())))
}

// versions are those of a function with when they first served, the newest first.
func (c *Core) versions(s *gateway.Snapshot, function string) []*pb.FunctionVersion {
	out := s.Versions(function)
	for i, v := range out {
		if at := c.served.since(v.GetName()); !at.IsZero() {
			out[i] = proto.CloneOf(v)
			out[i].FirstServeTime = timestamppb.New(at)
		}
	}
	return out
}
