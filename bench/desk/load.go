package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/bench/proc"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	limiterbench "github.com/penstock-gateway/penstock/ratelimit/bench"
)

const (
	issuer      = "https://bench.penstock.local"
	connections = 16
)

// requests measures a proxied request bare, with a token, and with a limit, in
// alternating rounds.
func (b *bench) requests(ctx context.Context) error {
	token, jwks, err := newToken()
	if err != nil {
		return err
	}
	addr, port := hostPort(b.upstream)
	policies := map[string]*pb.Policies{
		"bare": nil,
		"jwt": {Authentication: &pb.AuthenticationPolicy{Jwt: &pb.JwtAuthentication{
			Issuer: issuer, Audiences: []string{"bench"}, Keys: &pb.JwtAuthentication_Jwks{Jwks: jwks},
		}}},
		"limit": {RateLimit: &pb.RateLimitPolicy{Limits: []*pb.RateLimit{{
			Name: "all", Requests: 1_000_000_000, Window: durationpb.New(time.Second), Key: pb.RateLimitKey_RATE_LIMIT_KEY_ADDRESS,
		}}}},
	}
	resources := []*pb.Resource{{Kind: &pb.Resource_Backend{Backend: &pb.Backend{
		Name:   "projects/default/backends/bench",
		Target: &pb.Backend_Static{Static: &pb.StaticTarget{Endpoints: []*pb.Endpoint{{Address: addr, Port: port}}}},
	}}}}
	for name, p := range policies {
		resources = append(resources, &pb.Resource{Kind: &pb.Resource_Route{Route: &pb.Route{
			Name: "projects/default/routes/load-" + name, Hostnames: []string{name + ".load.example.com"}, Policies: p,
			Rules: []*pb.RouteRule{{Action: &pb.RouteRule_Forward{Forward: &pb.Forward{Backends: []*pb.WeightedBackend{{Backend: "bench"}}}}}},
		}}})
	}
	if err := b.apply(ctx, resources...); err != nil {
		return err
	}
	rounds, length := 5, 2*time.Second
	if b.short {
		rounds, length = 1, 200*time.Millisecond
	}
	envoy, err := b.pid("envoy")
	if err != nil {
		return err
	}
	rate, cpu := map[string][]float64{}, map[string][]float64{}
	for range rounds {
		for _, name := range []string{"bare", "jwt", "limit"} {
			r, c, err := load(ctx, b.gateway, name+".load.example.com", token, length, envoy)
			if err != nil {
				return fmt.Errorf("load %s: %w", name, err)
			}
			rate[name], cpu[name] = append(rate[name], r), append(cpu[name], c)
		}
	}
	for _, name := range []string{"bare", "jwt", "limit"} {
		b.report.AddRounds("requests/s, "+name, "1/s", rate[name])
		b.report.AddRounds("Envoy CPU per request, "+name, "us", cpu[name])
	}
	return nil
}

// load keeps connections busy for a while and returns requests per second and
// Envoy's CPU per request in microseconds.
func load(ctx context.Context, addr, host, token string, length time.Duration, envoy int) (rate, cpu float64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, length, errDone)
	defer cancel()
	before, err := proc.CPU(envoy)
	if err != nil {
		return 0, 0, err
	}
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start := time.Now()
	for range connections {
		wg.Go(func() {
			if err := client(ctx, addr, host, token, &done); err != nil && ctx.Err() == nil {
				failed.Store(&err)
				cancel()
			}
		})
	}
	wg.Wait()
	took := time.Since(start)
	if e := failed.Load(); e != nil {
		return 0, 0, *e
	}
	after, err := proc.CPU(envoy)
	n := float64(done.Load())
	return n / took.Seconds(), float64((after - before).Microseconds()) / n, err
}

var errDone = fmt.Errorf("the round is over")

// client sends one request after the other on one connection. It writes and reads
// the bytes itself: net/http would cost more than what is measured.
func client(ctx context.Context, addr, host, token string, done *atomic.Int64) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	request := []byte("GET / HTTP/1.1\r\nHost: " + host + "\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	in := bufio.NewReader(conn)
	for ctx.Err() == nil {
		if _, err := conn.Write(request); err != nil {
			return err
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", resp.StatusCode)
		}
		done.Add(1)
	}
	return nil
}

// newToken makes a key, a token and the key set that verifies it.
func newToken() (token, jwks string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	private := jose.JSONWebKey{Key: key, KeyID: "bench", Algorithm: "ES256", Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: private}, nil)
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	token, err = jwt.Signed(signer).Claims(jwt.Claims{
		Issuer: issuer, Subject: "bench", Audience: jwt.Audience{"bench"},
		IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(time.Hour)),
	}).Serialize()
	if err != nil {
		return "", "", err
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{private.Public()}})
	return token, string(set), err
}

// decisions measures the limiter alone.
func (b *bench) decisions(ctx context.Context) error {
	pid, err := b.pid("limiter")
	if err != nil {
		return err
	}
	length := 3 * time.Second
	if b.short {
		length = 200 * time.Millisecond
	}
	for _, descriptors := range []int{1, 4} {
		r, err := limiterbench.Run(ctx, limiterbench.Config{Address: b.limiter, Pid: pid, Descriptors: descriptors, Duration: length})
		if err != nil {
			return fmt.Errorf("limiter: %w", err)
		}
		if r.Errors > 0 {
			return fmt.Errorf("limiter: %d of %d decisions failed", r.Errors, r.Decisions)
		}
		what := fmt.Sprintf("limiter, memory, 64 in flight, %d limits: ", descriptors)
		b.report.Add(what+"decisions/s", "1/s", r.PerSecond)
		b.report.Add(what+"p99", "ms", milliseconds(r.P99))
		b.report.Add(what+"CPU per decision", "us", float64(r.CPU.Nanoseconds())/1000)
	}
	return nil
}
