package ratelimit

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// redisScript decides; see its own comment.
//
//go:embed redis.lua
var redisScript string

const (
	// DefaultRedisTimeout bounds one call when RedisOptions.Timeout is 0. It is far
	// above what a call takes and far below what a caller waits for.
	DefaultRedisTimeout = 75 * time.Millisecond
	// flushers is how many script calls are under way at once: while one is, the
	// other gathers, so batches grow with the load.
	flushers = 2
	// maxBatchRequests and maxBatchLimits bound one script call, which blocks Redis
	// for about 2 µs per limit.
	maxBatchRequests = 256
	maxBatchLimits   = 1024
	// queueLength bounds what waits for a flusher; beyond it the backend is
	// unavailable, rather than slow.
	queueLength = 4096
	// hashTag is in all keys, so that Redis Cluster has them in one slot: a script
	// works on one slot only.
	hashTag = "{penstock}"
)

// RedisOptions configure a Redis.
type RedisOptions struct {
	// URL is redis://, rediss:// or unix://, as go-redis reads it:
	// redis://user:password@host:6379/0.
	URL string
	// Cluster tells that URL is a node of a Redis Cluster.
	Cluster bool
	// Prefix begins all keys, after the hash tag {penstock}; "": ":rl:".
	Prefix string
	// Timeout bounds a call of Redis; 0: DefaultRedisTimeout.
	Timeout time.Duration
	// Logger is told when Redis comes and goes; nil: slog.Default().
	Logger *slog.Logger
	// OnBatch, when set, is told the number of requests of each script call.
	OnBatch func(requests int)
	// now, in tests, replaces the clock of Redis, in µs since the epoch.
	now func() int64
}

// Redis is a Backend whose counters are in Redis, shared by all limiters. Requests
// that come at the same time are decided in one script call. While Redis does
// not answer, Decide fails at once, and a probe asks until it does.
type Redis struct {
	o       RedisOptions
	client  redis.UniversalClient
	script  *redis.Script
	breaker *breaker
	queue   chan *call
	ended   <-chan struct{}
	stop    context.CancelFunc
	done    sync.WaitGroup
	fails   atomic.Uint64
}

// call is a Decide that waits for its flusher.
type call struct {
	requests []Request
	results  []Result
	err      error
	ready    chan struct{}
}

// NewRedis makes a backend and starts to connect. It does not fail when Redis is
// not there: the failure policies decide until it is. The error says what is wrong
// with the options, without the password.
func NewRedis(o RedisOptions) (*Redis, error) {
	if o.Timeout == 0 {
		o.Timeout = DefaultRedisTimeout
	}
	if o.Prefix == "" {
		o.Prefix = ":rl:"
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	muteClient()
	client, err := newRedisClient(o)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	r := &Redis{
		o: o, client: client, script: redis.NewScript(redisScript), ended: ctx.Done(), stop: stop,
		queue: make(chan *call, queueLength),
	}
	r.breaker = newBreaker(r.probe, o.Logger)
	for range flushers {
		r.done.Go(func() { r.flush(ctx) })
	}
	// Learns whether Redis is there before the first request does.
	r.done.Go(func() { r.breaker.watch(ctx) })
	return r, nil
}

func newRedisClient(o RedisOptions) (redis.UniversalClient, error) {
	quiet := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if o.Cluster {
		c, err := redis.ParseClusterURL(o.URL)
		if err != nil {
			return nil, fmt.Errorf("Redis URL %s: %w", redacted(o.URL), hideURL(err))
		}
		c.DialTimeout, c.ReadTimeout, c.WriteTimeout = o.Timeout, o.Timeout, o.Timeout
		c.PoolSize, c.MinIdleConns, c.MaxRetries = 2*flushers, flushers, -1
		// A moved slot is followed once or twice, within the timeout.
		c.MaxRedirects, c.DialerRetries = 2, 1
		c.ContextTimeoutEnabled, c.DisableIdentity, c.MaintNotificationsConfig = true, true, quiet
		return redis.NewClusterClient(c), nil
	}
	c, err := redis.ParseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("Redis URL %s: %w", redacted(o.URL), hideURL(err))
	}
	c.DialTimeout, c.ReadTimeout, c.WriteTimeout = o.Timeout, o.Timeout, o.Timeout
	// No retries: they would hold a request longer than it can wait, and could
	// count it twice.
	c.PoolSize, c.MinIdleConns, c.MaxRetries = 2*flushers, flushers, -1
	c.DialerRetries = 1
	c.ContextTimeoutEnabled, c.DisableIdentity, c.MaintNotificationsConfig = true, true, quiet
	return redis.NewClient(c), nil
}

// muteClient stops go-redis from writing each failed attempt to standard error: the
// breaker logs what matters, once. Its logger is one for the whole process.
var muteClient = sync.OnceFunc(func() { redis.SetLogger(noLog{}) })

type noLog struct{}

// Printf implements go-redis' Logging.
func (noLog) Printf(context.Context, string, ...any) {}

// redacted is the URL without its password.
func redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "(not a URL)"
	}
	return u.Redacted()
}

// hideURL takes the text of the URL out of an error of net/url.
func hideURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// Name implements Backend.
func (r *Redis) Name() string { return "redis" }

// Up reports whether Redis answered last.
func (r *Redis) Up() bool { return r.breaker.closed() }

// Failures returns how many calls of Redis failed, with those that find out whether it is back.
func (r *Redis) Failures() uint64 { return r.fails.Load() }

// Close ends the backend. Calls that wait get ErrUnavailable.
func (r *Redis) Close() error {
	r.stop()
	r.done.Wait()
	return r.client.Close()
}

// Decide implements Backend.
func (r *Redis) Decide(ctx context.Context, requests []Request) ([]Result, error) {
	if len(requests) == 0 {
		return nil, ctx.Err()
	}
	if len(requests) > maxBatchLimits {
		return nil, fmt.Errorf("%d limits in one request, %d are possible", len(requests), maxBatchLimits)
	}
	if !r.breaker.closed() {
		return nil, fmt.Errorf("%w: Redis does not answer", ErrUnavailable)
	}
	c := &call{requests: requests, ready: make(chan struct{})}
	select {
	case r.queue <- c:
	case <-ctx.Done():
		return nil, ctx.Err()
	default:
		return nil, fmt.Errorf("%w: too many requests wait for Redis", ErrUnavailable)
	}
	select {
	case <-c.ready:
		return c.results, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.ended:
		return nil, fmt.Errorf("%w: the limiter ends", ErrUnavailable)
	}
}

// flush takes what waits, up to the bounds of a batch, and decides it.
func (r *Redis) flush(ctx context.Context) {
	var next *call // taken from the queue, and too much for the batch
	for {
		first := next
		next = nil
		if first == nil {
			select {
			case first = <-r.queue:
			case <-ctx.Done():
				return
			}
		}
		batch, limits := []*call{first}, len(first.requests)
	gather:
		for len(batch) < maxBatchRequests {
			select {
			case c := <-r.queue:
				if limits += len(c.requests); limits > maxBatchLimits {
					next = c
					break gather
				}
				batch = append(batch, c)
			default:
				break gather
			}
		}
		r.decide(ctx, batch)
	}
}

// decide runs the script for a batch and hands out the results.
func (r *Redis) decide(ctx context.Context, batch []*call) {
	err := fmt.Errorf("%w: Redis does not answer", ErrUnavailable)
	if r.breaker.closed() { // else it opened while they waited
		if err = r.run(ctx, batch); err != nil {
			r.fails.Add(1)
			r.breaker.failed(err)
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		} else {
			r.breaker.succeeded()
		}
		if r.o.OnBatch != nil {
			r.o.OnBatch(len(batch))
		}
	}
	for _, c := range batch {
		if err != nil {
			c.results, c.err = nil, err
		}
		close(c.ready)
	}
}

func (r *Redis) run(ctx context.Context, batch []*call) error {
	keys, args := r.encode(batch)
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	// EVALSHA, and EVAL when Redis does not know the script (it restarted).
	reply, err := r.script.Run(ctx, r.client, keys, args...).Int64Slice()
	if err != nil {
		return err
	}
	return decode(batch, reply)
}

// encode makes the arguments of the script.
func (r *Redis) encode(batch []*call) (keys []string, args []any) {
	type numbers struct {
		limit
		shadow bool
	}
	total := 0
	for _, c := range batch {
		total += len(c.requests)
	}
	keys = make([]string, 0, total)
	keyIndex := make(map[string]int, total)
	limitIndex := map[numbers]int{}
	limits := make([]any, 0, 16)
	requests := make([]any, 0, len(batch)+3*total)
	for _, c := range batch {
		requests = append(requests, len(c.requests))
		for i := range c.requests {
			q := &c.requests[i]
			k, ok := keyIndex[q.Key]
			if !ok {
				keys = append(keys, hashTag+r.o.Prefix+q.Key)
				k = len(keys)
				keyIndex[q.Key] = k
			}
			n := numbers{q.Spec.limit(), q.Spec.Shadow}
			s, ok := limitIndex[n]
			if !ok {
				s = len(limitIndex) + 1
				limitIndex[n] = s
				limits = append(limits, n.requests, n.window, n.burst, flags(n.fixed, n.shadow))
			}
			requests = append(requests, k, s, q.Cost)
		}
	}
	now := ""
	if r.o.now != nil {
		now = strconv.FormatInt(r.o.now(), 10)
	}
	args = make([]any, 0, 2+len(limits)+len(requests))
	args = append(args, now, len(limitIndex))
	return keys, append(append(args, limits...), requests...)
}

func flags(fixed, shadow bool) int {
	f := 0
	if fixed {
		f |= 1
	}
	if shadow {
		f |= 2
	}
	return f
}

// decode reads the script's reply into the batch.
func decode(batch []*call, reply []int64) error {
	want := 1
	for _, c := range batch {
		want += 3 * len(c.requests)
	}
	if len(reply) != want {
		return fmt.Errorf("the script returned %d numbers, expected %d", len(reply), want)
	}
	now, rest := reply[0], reply[1:]
	for _, c := range batch {
		c.results = make([]Result, len(c.requests))
		for i, q := range c.requests {
			s := State{At: rest[1], Used: rest[2]}
			c.results[i] = q.Spec.limit().result(s, now, q.Cost, rest[0] == 1)
			rest = rest[3:]
		}
	}
	return nil
}

// probe asks whether Redis works again: not by a PING, which a read-only replica
// or a full Redis answers too, but by taking from a counter of its own.
func (r *Redis) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	c := &call{requests: []Request{{Key: "probe", Cost: 1, Spec: Spec{Requests: MaxRequests, Window: time.Second}}}}
	keys, args := r.encode([]*call{c})
	err := r.script.Run(ctx, r.client, keys, args...).Err()
	if err != nil && !errors.Is(err, context.Canceled) {
		r.fails.Add(1)
	}
	return err
}
