// Package keeper keeps the configuration that a proxy has acknowledged on the proxy's own
// machine, so that a proxy that starts while no control plane is there serves all the same.
//
// A Keeper stands between one Envoy and the control plane, on a Unix socket. While the
// control plane is there it passes everything on, both ways, and notes what the proxy
// acknowledges: what it is sent and refuses is never kept. When the proxy opens its stream
// and the control plane cannot be reached, the keeper answers from what it has kept. When
// the control plane is back the stream is ended; on the next one the proxy says what it has,
// by versions that are hashes of the content, so only what differs is sent, and no
// connection of a client is touched.
//
// An acknowledgement is passed on after it was written. So what the control plane knows
// a proxy to have is what a start from disk gives it, whenever one of the processes ends.
// After a loss of power the last second may be missing.
package keeper

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/penstock-gateway/penstock/internal/flock"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/xds"
)

// DefaultMaxAge is how old a configuration may be that a proxy starts from: a day has the
// length of a bad outage, and bounds how long something that was taken away in the
// meantime (a route, a key, a proxy that was revoked) can come back with a start.
const DefaultMaxAge = 24 * time.Hour

const (
	// connectWait is how long a proxy that opens a stream waits for the control plane
	// before it gets what is kept: both may have been started at the same moment.
	connectWait = 2 * time.Second
	// contactEvery is how often it is noted that the control plane is there, and
	// syncEvery how long a note may be lost by a loss of power.
	contactEvery = time.Minute
	syncEvery    = time.Second
	// rewriteAfter is how many bytes of a file may be of no use any more, besides as many
	// as are of use.
	rewriteAfter = 1 << 20
	// retryWrite is the time between two tries to write a file that could not be written.
	retryWrite = 5 * time.Second
)

// Options say whose configuration is kept, and where.
type Options struct {
	// Dir is the private folder of the proxy, for the sealed file and its key.
	Dir string
	// Identity is the SPIFFE id of the proxy.
	Identity string
	// Socket is the path of the Unix socket that Envoy connects to.
	Socket string
	// Control are host:port of each replica of the control plane.
	Control []string
	// ServerName is sent as SNI; empty: none.
	ServerName string
	// CertFile, KeyFile and CAFile are the proxy's PEM files. A proxy starts from disk only
	// while its certificate is in force.
	CertFile, KeyFile, CAFile string
	// ControlSPIFFE is the identity that the control plane must prove.
	ControlSPIFFE string
	// MaxAge is how long ago the control plane may have been there when a proxy starts
	// from disk; 0: DefaultMaxAge. A proxy that runs is never stopped for it.
	MaxAge time.Duration
	Logger *slog.Logger
	// OnChange is called with each new Status, one call at a time. It must not block.
	OnChange func(Status)

	wait time.Duration // in place of connectWait, for tests
}

// Source is where a proxy has its configuration from.
type Source string

// The sources.
const (
	// None: no proxy is connected, or it is and there is nothing for it. One that has
	// run before serves on with what it has.
	None Source = "none"
	// ControlPlane: the proxy is connected to the control plane.
	ControlPlane Source = "control plane"
	// Disk: the proxy was given what is kept.
	Disk Source = "disk"
)

// Status is what a keeper does.
type Status struct {
	Source Source `json:"source"`
	// Contact is when the control plane was last there; zero: never.
	Contact time.Time `json:"contact,omitzero"`
	// Resources are kept.
	Resources int `json:"resources"`
	// Problem says why there is no control plane, why what is kept is not used, or why
	// nothing is kept.
	Problem string `json:"problem,omitempty"`
}

// Keeper keeps the configuration of one proxy. Make it with New.
type Keeper struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	opt  Options
	path string
	key  []byte
	lock *os.File
	conn *grpc.ClientConn

	mu       sync.Mutex
	state    *state
	epoch    int      // how often what is kept was removed because the control plane refuses the proxy
	refused  error    // why the file that was there is not used
	log      *logFile // nil: a change writes the whole file
	writeErr error
	tryWrite time.Time
	streams  int                     // that lead to the control plane
	current  context.CancelCauseFunc // of the stream of the proxy
	turn     int                     // the number of that stream
	status   Status
	tell     sync.Mutex // held while OnChange is called
}

// New opens what is kept in Options.Dir. A file that cannot be used is not an error: it is
// told in the Status, and replaced when the control plane is there.
func New(o Options) (*Keeper, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.MaxAge = cmp.Or(o.MaxAge, DefaultMaxAge)
	o.wait = cmp.Or(o.wait, connectWait)
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("keep the configuration: %w", err)
	}
	config, err := pki.ProxyTLS(o.CertFile, o.KeyFile, o.CAFile, o.ControlSPIFFE)
	if err != nil {
		return nil, fmt.Errorf("keep the configuration: %w", err)
	}
	config.ServerName = o.ServerName
	k := &Keeper{opt: o, path: filepath.Join(o.Dir, fileName)}
	if k.conn, err = dial(o.Control, config); err != nil {
		return nil, fmt.Errorf("keep the configuration: %w", err)
	}
	if k.key, k.lock, err = openKey(o.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("keep the configuration: %w", err), k.conn.Close())
	}
	records, err := readLog(k.path, o.Identity, k.key)
	if err == nil {
		k.state, err = replay(records)
	}
	if err != nil {
		k.state, k.refused = newState(), err
		o.Logger.Error("the configuration that is kept for a start without a control plane is not used", "error", err)
	}
	k.status = Status{Source: None, Contact: k.state.contact, Resources: k.state.len()}
	return k, nil
}

// dial makes a connection that takes whichever replica answers first.
func dial(control []string, config *tls.Config) (*grpc.ClientConn, error) {
	r := manual.NewBuilderWithScheme("replicas")
	var all []resolver.Address
	for _, a := range control {
		all = append(all, resolver.Address{Addr: a})
	}
	r.InitialState(resolver.State{Addresses: all})
	return grpc.NewClient("replicas:///control",
		grpc.WithResolvers(r),
		grpc.WithTransportCredentials(credentials.NewTLS(config)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	)
}

// Listen opens the socket.
func (k *Keeper) Listen(ctx context.Context) (net.Listener, error) {
	l, err := socket.Listen(ctx, k.opt.Socket)
	if err != nil {
		return nil, fmt.Errorf("keep the configuration: %w", err)
	}
	return l, nil
}

// Serve serves the proxy on what Listen returned until ctx ends.
func (k *Keeper) Serve(ctx context.Context, l net.Listener) error {
	// A proxy that is stopped, or hangs, would else be connected for ever: its stream to
	// the control plane is this one's.
	server := grpc.NewServer(grpc.MaxRecvMsgSize(32<<20), grpc.KeepaliveParams(keepalive.ServerParameters{Time: 10 * time.Second, Timeout: 20 * time.Second}))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, k)
	stop := context.AfterFunc(ctx, server.Stop)
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { k.upkeep(ctx) })
	k.conn.Connect()
	err := server.Serve(l)
	if ctx.Err() != nil {
		err = nil
	}
	background.Wait()
	return err
}

// Close ends it; Serve must have returned.
func (k *Keeper) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.conn.Close()
	if k.log != nil {
		err = errors.Join(err, k.log.sync(), k.log.f.Close())
		k.log = nil
	}
	return errors.Join(err, flock.Close(k.lock))
}

// Usable returns why a proxy could not start from what is kept; nil: it could.
func (k *Keeper) Usable() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.usable(time.Now())
}

// usable is Usable with mu held.
func (k *Keeper) usable(now time.Time) error {
	switch {
	case k.refused != nil:
		return k.refused
	case len(k.state.types[xds.Listener]) == 0:
		return errors.New("no configuration is kept yet")
	}
	age := now.Sub(k.state.contact)
	switch {
	case age < -k.opt.MaxAge:
		// A clock that was set back would make any configuration young again, and the
		// certificate with it.
		return fmt.Errorf("the clock of this machine is at least %s behind: it says %s, and the control plane was there on %s; set the clock, so that the age of the configuration is known",
			(-age).Round(time.Second), now.Local().Format(time.DateTime), k.state.contact.Local().Format(time.DateTime))
	case age > k.opt.MaxAge:
		return fmt.Errorf("the configuration that is kept is %s old, and a proxy starts from none that is older than %s", age.Round(time.Second), k.opt.MaxAge)
	}
	cert, err := pki.ReadCertificate(k.opt.CertFile)
	if err != nil {
		return err
	}
	if now.After(cert.NotAfter) {
		return fmt.Errorf("the certificate of the proxy expired on %s: a proxy starts from disk only while it is in force", cert.NotAfter.Local().Format(time.DateTime))
	}
	return nil
}

// Status is what it does now.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now()
}

// now is the Status with mu held.
func (k *Keeper) now() Status {
	s := k.status
	s.Contact, s.Resources = k.state.contact, k.state.len()
	if k.writeErr != nil {
		s.Problem = fmt.Sprintf("the configuration is not kept for a start without a control plane: %v", k.writeErr)
	}
	return s
}

// set changes the status and tells of it, unless the stream that says so was replaced.
func (k *Keeper) set(turn int, source Source, problem string) {
	k.tell.Lock()
	defer k.tell.Unlock()
	k.mu.Lock()
	if turn != k.turn {
		k.mu.Unlock()
		return
	}
	k.status.Source, k.status.Problem = source, problem
	s := k.now()
	k.mu.Unlock()
	if k.opt.OnChange != nil {
		k.opt.OnChange(s)
	}
}

// upkeep notes every now and then that the control plane is there, and has what was
// written reach the disk.
func (k *Keeper) upkeep(ctx context.Context) {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			k.mu.Lock()
			if k.streams > 0 && now.Sub(k.state.contact) >= contactEvery {
				k.write(record{kind: recordContact, time: now})
			}
			if k.log != nil {
				if err := k.log.sync(); err != nil {
					k.lost(err)
				}
			}
			k.mu.Unlock()
		}
	}
}

// contact notes that the control plane is there.
func (k *Keeper) contact() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.write(record{kind: recordContact, time: time.Now()})
}

// keep takes in what the proxy has acknowledged, or does not have any more. epoch is that
// of the beginning of the stream: what comes of an earlier one is late, and dropped.
func (k *Keeper) keep(epoch int, d *discoveryv3.DeltaDiscoveryResponse) {
	if len(d.GetResources()) == 0 && len(d.GetRemovedResources()) == 0 {
		return
	}
	body, err := marshalRecord(d)
	k.mu.Lock()
	defer k.mu.Unlock()
	if epoch != k.epoch {
		return
	}
	k.state.apply(d)
	k.refused = nil
	if err != nil {
		k.lost(err)
		return
	}
	k.write(record{kind: recordResources, time: time.Now(), body: body})
}

// write writes a record whose content is in the state. The caller holds mu.
func (k *Keeper) write(r record) {
	k.state.contact = r.time
	if k.log != nil && k.log.size < 2*k.state.bytes+rewriteAfter {
		if err := k.log.append(r); err != nil {
			k.lost(err)
		}
		return
	}
	if len(k.state.types) == 0 || r.time.Before(k.tryWrite) {
		return
	}
	l, err := createLog(k.path, k.opt.Identity, k.key, k.state.records())
	if err != nil {
		k.lost(err)
		return
	}
	if k.log != nil {
		k.log.f.Close()
	}
	k.log = l
	if k.writeErr != nil {
		k.writeErr = nil
		k.opt.Logger.Info("the configuration is kept again")
	}
}

// lost gives up a file that could not be written: an earlier configuration must not come
// back with it. The caller holds mu.
func (k *Keeper) lost(err error) {
	if k.writeErr == nil {
		k.opt.Logger.Error("the configuration is not kept for a start without a control plane; will try again", "error", err)
	}
	k.writeErr, k.tryWrite = err, time.Now().Add(retryWrite)
	k.remove()
}

// remove removes the file, and reports whether there was one. The caller holds mu.
func (k *Keeper) remove() bool {
	if k.log != nil {
		k.log.f.Close()
		k.log = nil
	}
	err := os.Remove(k.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		k.opt.Logger.Error("cannot remove the configuration that is kept", "file", k.path, "error", err)
	}
	return err == nil
}

// forget removes what is kept, since the control plane refuses this proxy: also a file
// that was not read, because another version or a restored key may read it. What is still
// to come of streams that began before is not kept any more (keep).
func (k *Keeper) forget(why error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epoch++
	k.state, k.refused = newState(), nil
	removed := k.remove()
	// A process that ended while it wrote leaves what it had written under another name.
	unfinished, _ := filepath.Glob(filepath.Join(k.opt.Dir, unfinishedName))
	for _, f := range unfinished {
		removed = os.Remove(f) == nil || removed
	}
	if !removed {
		return
	}
	if err := syncDir(k.opt.Dir); err != nil {
		k.opt.Logger.Error("the configuration that was kept may come back after a loss of power", "error", err)
	}
	k.opt.Logger.Error("the control plane refuses this proxy: what was kept for a start without it is removed", "error", why)
}

// ready waits until the control plane is connected, or ctx ends.
func (k *Keeper) ready(ctx context.Context) bool {
	for {
		s := k.conn.GetState()
		if s == connectivity.Ready {
			return true
		}
		if s == connectivity.Idle {
			k.conn.Connect()
		}
		if !k.conn.WaitForStateChange(ctx, s) {
			return false
		}
	}
}

// age is how long ago the control plane was there, as people say it.
func (k *Keeper) age() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return max(0, time.Since(k.state.contact)).Round(time.Second)
}
