package admission

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// twoRooms are those of two replicas on one store. What goes through a served control
// plane is tested in package control.
func twoRooms(t *testing.T) (p, q *Room) {
	t.Helper()
	dir := t.TempDir()
	log := slog.New(slog.DiscardHandler)
	st, err := store.Open(t.Context(), store.Options{DataDir: filepath.Join(dir, "etcd"), SealKey: make([]byte, store.SealKeyBytes), Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	room := func() *Room {
		return New(Params{State: st, Log: log, CA: ca, Exists: func(string) bool { return false }})
	}
	return room(), room()
}

// newToken asks for a token of the proxy default/-/name.
func newToken(t *testing.T, at *Room, name string, ttl time.Duration) pki.JoinToken {
	t.Helper()
	resp, err := admission{joins: at.joins}.CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Gateway: "-", Name: name, Ttl: durationpb.New(ttl)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseJoinToken(resp.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newCSR(t *testing.T, spiffe string) (csr, key []byte) {
	t.Helper()
	csr, key, err := pki.NewRequest(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

// wantCode checks the status of an error, and that it says some words.
func wantCode(t *testing.T, what string, err error, code codes.Code, words string) {
	t.Helper()
	if status.Code(err) != code || !strings.Contains(status.Convert(err).Message(), words) {
		t.Errorf("%s: %v, want %s: %s", what, err, code, words)
	}
}

// TestGuardInterceptors: the interceptors hold without the tap, too.
func TestGuardInterceptors(t *testing.T) {
	g := newGuard(slog.New(slog.DiscardHandler))
	for _, m := range []string{"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", "/any.Service/Any", pb.ProxyJoinService_Renew_FullMethodName, ""} {
		err := g.stream(nil, &guarded{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: m}, func(any, grpc.ServerStream) error {
			t.Errorf("%s: reached", m)
			return nil
		})
		wantCode(t, "stream "+m, err, codes.Unauthenticated, "client certificate")
		_, err = g.unary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: m}, func(context.Context, any) (any, error) {
			t.Errorf("%s: reached", m)
			return nil, nil
		})
		wantCode(t, "unary "+m, err, codes.Unauthenticated, "client certificate")
	}
}

func TestJoinToken(t *testing.T) {
	p, q := twoRooms(t)
	token := newToken(t, p, "edge-2", time.Minute)
	join := func(at *Room, token pki.JoinToken, csr []byte, name string) error {
		_, err := at.joins.Join(t.Context(), &pb.JoinRequest{
			Secret: token.Secret[:], CertificateRequest: csr, Name: name,
		})
		return err
	}
	csr, _ := newCSR(t, "")
	named, _ := newCSR(t, pki.ProxyID("default", "-", "edge-3"))
	wantCode(t, "another name", join(p, token, csr, "edge-3"), codes.PermissionDenied, `for the proxy "edge-2"`)
	wantCode(t, "another identity", join(p, token, named, ""), codes.InvalidArgument, "it asks for spiffe://penstock.local/proxy/default/-/edge-3")
	for what, bad := range badRequests(t) {
		wantCode(t, what, join(p, token, bad.der, ""), codes.InvalidArgument, bad.want)
	}
	unknown := token
	unknown.Secret[3] ^= 1
	wantCode(t, "unknown", join(p, unknown, csr, ""), codes.Unauthenticated, "not known")

	// None of that used the token up. It works at the other replica, once.
	if err := join(q, token, csr, "edge-2"); err != nil {
		t.Fatal(err)
	}
	if err := join(p, token, csr, ""); err != nil {
		t.Errorf("the same key again, as after a lost answer: %v", err)
	}
	second, _ := newCSR(t, "")
	wantCode(t, "twice", join(p, token, second, ""), codes.Unauthenticated, "used before")
	wantCode(t, "twice, at the other", join(q, token, second, ""), codes.Unauthenticated, "used before")

	late := newToken(t, p, "late", time.Minute)
	p.joins.now = func() time.Time { return time.Now().Add(time.Minute) }
	wantCode(t, "expired", join(p, late, csr, ""), codes.Unauthenticated, "expired at")
	p.joins.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	newToken(t, p, "next", time.Minute) // sweeps
	wantCode(t, "forgotten", join(p, token, second, ""), codes.Unauthenticated, "not known")
	state, err := p.joins.State.State(t.Context(), joinPrefix)
	if err != nil || len(state) != 1 {
		t.Errorf("left in the store: %d values, want the newest token only; %v", len(state), err)
	}
	for key, value := range state {
		if strings.Contains(key+string(value), string(token.Secret[:])) {
			t.Error("a secret is in the store")
		}
	}
}

// TestJoinTokenRace: of many users of one token at two replicas, at most one joins.
func TestJoinTokenRace(t *testing.T) {
	p, q := twoRooms(t)
	for round := range 10 {
		token := newToken(t, p, fmt.Sprintf("p%d", round), time.Minute)
		var wg sync.WaitGroup
		errs := make([]error, 4)
		for i := range errs {
			csr, _ := newCSR(t, "")
			wg.Go(func() {
				room := []*Room{p, q}[i%2]
				_, errs[i] = room.joins.Join(t.Context(), &pb.JoinRequest{Secret: token.Secret[:], CertificateRequest: csr})
			})
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else {
				wantCode(t, "a loser", err, codes.Unauthenticated, "used before")
			}
		}
		if won > 1 {
			t.Fatalf("round %d: %d joined with one token", round, won)
		}
	}
}

type badRequest struct {
	der  []byte
	want string
}

func badRequests(t *testing.T) map[string]badRequest {
	t.Helper()
	good, _ := newCSR(t, "")
	torn := append([]byte{}, good...)
	torn[len(torn)-1] ^= 1
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, private)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]badRequest{
		"no request":        {nil, "certificate_request"},
		"garbage":           {[]byte("hello"), "not PKCS #10"},
		"a torn signature":  {torn, "signed by its own key"},
		"another algorithm": {edwards, "ECDSA on P-256"},
		"too long":          {make([]byte, 5000), "certificate_request"},
	}
}

func TestAdmissionBadInput(t *testing.T) {
	p, _ := twoRooms(t)
	c := admission{joins: p.joins}
	for what, r := range map[string]*pb.CreateJoinTokenRequest{
		"name":         {Gateway: "-"},
		"name ":        {Gateway: "-", Name: "Edge"},
		"name  ":       {Gateway: "-", Name: "a/b"},
		"gateway":      {Name: "a"},
		"gateway ":     {Name: "a", Gateway: "../x"},
		"project":      {Name: "a", Gateway: "-", Project: "A"},
		"ttl":          {Name: "a", Gateway: "-", Ttl: durationpb.New(25 * time.Hour)},
		"ttl ":         {Name: "a", Gateway: "-", Ttl: durationpb.New(-time.Second)},
		"is not there": {Name: "a", Gateway: "nobody"},
	} {
		_, err := c.CreateJoinToken(t.Context(), r)
		wantCode(t, fmt.Sprint(r), err, codes.InvalidArgument, strings.TrimSpace(what))
	}
	for what, r := range map[string]*pb.RevokeProxyRequest{
		"exactly one":   {},
		"want spiffe":   {Subject: &pb.RevokeProxyRequest_Identity{Identity: "edge"}},
		"not the id":    {Subject: &pb.RevokeProxyRequest_Identity{Identity: "spiffe://" + pki.TrustDomain + "/control"}},
		"hexadecimal":   {Subject: &pb.RevokeProxyRequest_Serial{Serial: "xyz"}},
		"positive":      {Subject: &pb.RevokeProxyRequest_Serial{Serial: "0:0"}},
		"1 to 21 bytes": {Subject: &pb.RevokeProxyRequest_Serial{Serial: strings.Repeat("a", 100)}},
	} {
		_, err := c.RevokeProxy(t.Context(), r)
		wantCode(t, fmt.Sprint(r), err, codes.InvalidArgument, what)
	}
	_, err := c.AllowProxy(t.Context(), &pb.AllowProxyRequest{})
	wantCode(t, "allow nobody", err, codes.InvalidArgument, "subject")

	// A control plane without an authority.
	p.joins.CA = nil
	_, err = c.CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Gateway: "-", Name: "a"})
	wantCode(t, "no CA", err, codes.FailedPrecondition, "no certificate authority")
}
