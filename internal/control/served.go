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
)

// servedPrefix is where the store's run-time state keeps when an instance of a version of
// a function was first ready, by the version's name: a version that never served is none
// to go back to, and one to be tried before it is relied on.
const servedPrefix = "served/"

// servedBook knows which versions have served.
type servedBook struct {
	core *Core
	mu   sync.Mutex
	at   map[string]time.Time // by the name of the version
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
		if len(value) >= 8 {
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

// note keeps the versions that a runner has instances of that are ready.
func (b *servedBook) note(ctx context.Context, instances []*pb.Instance) {
	for _, i := range instances {
		if i.GetState() != pb.InstanceState_INSTANCE_STATE_READY || i.GetVersion() == 0 {
			continue
		}
		function, _ := gateway.FunctionOf(i.GetFunction())
		version := gateway.VersionOf(function, i.GetVersion())
		now := b.core.now()
		b.mu.Lock()
		_, known := b.at[version]
		if !known {
			b.at[version] = now
		}
		b.mu.Unlock()
		if known {
			continue
		}
		value := binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano()))
		if err := b.core.store.PutState(ctx, servedKey(version), value); err != nil && ctx.Err() == nil {
			b.core.log.Warn("cannot keep that a version has served; after a restart it is not known", "version", version, "error", err)
		}
		b.forget(ctx, function)
	}
}

// forget drops what is kept of versions of a function that are gone.
func (b *servedBook) forget(ctx context.Context, function string) {
	s := b.core.Snapshot()
	prefix := gateway.VersionOf(function, 0)
	prefix = strings.TrimSuffix(prefix, "0")
	var gone []string
	b.mu.Lock()
	for version := range b.at {
		number, mine := strings.CutPrefix(version, prefix)
		if _, err := strconv.ParseInt(number, 10, 64); mine && err == nil && s.Get(version) == nil {
			gone = append(gone, version)
			delete(b.at, version)
		}
	}
	b.mu.Unlock()
	for _, version := range gone {
		if err := b.core.store.DeleteState(ctx, servedKey(version)); err != nil && ctx.Err() == nil {
			b.core.log.Warn("cannot forget that a version has served", "version", version, "error", err)
		}
	}
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
