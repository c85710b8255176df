package devissuer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/store"
)

func openStore(t *testing.T, dir string) store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{
		DataDir: filepath.Join(dir, "etcd"), Prefix: "/test", SealKey: make([]byte, 32), Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func open(t *testing.T, st Store) *Issuer {
	t.Helper()
	i, err := Open(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// TestKey: replicas that start at once have one key, a restart keeps it, and no file of
// the store has it.
func TestKey(t *testing.T) {
	dir := t.TempDir()
	st := openStore(t, dir)
	var wg sync.WaitGroup
	issuers := make([]*Issuer, 8)
	errs := make([]error, len(issuers))
	for n := range issuers {
		wg.Go(func() { issuers[n], errs[n] = Open(t.Context(), st) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, i := range issuers {
		if !i.key.Equal(issuers[0].key) || i.jwks != issuers[0].jwks {
			t.Fatal("two replicas have two keys")
		}
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st = openStore(t, dir)
	defer st.Close()
	if again := open(t, st); !again.key.Equal(issuers[0].key) {
		t.Error("another key after a restart")
	}
	der, err := x509.MarshalPKCS8PrivateKey(issuers[0].key)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := issuers[0].key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, der) || bytes.Contains(b, scalar) {
			t.Errorf("%s holds the private key", path)
		}
		files++
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("%d files, %v", files, err)
	}
	if strings.Contains(issuers[0].jwks, `"d"`) {
		t.Error("the public set holds the private key")
	}
}

// broken is a store whose pin is something else.
type broken struct {
	Store
	value string
}

func (b broken) Pin(context.Context, string, string) (string, error) { return b.value, nil }

// TestDamagedKey: what is stored and is not a key is named, and no other is made.
func TestDamagedKey(t *testing.T) {
	st := openStore(t, t.TempDir())
	defer st.Close()
	sealed, err := st.Seal(pin, []byte("not a key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"!", "AAAA", string(sealed)} {
		if _, err := Open(t.Context(), broken{st, value}); err == nil || !strings.Contains(err.Error(), "development issuer") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestMint(t *testing.T) {
	st := openStore(t, t.TempDir())
	defer st.Close()
	i := open(t, st)
	now := time.Now().Truncate(time.Second)
	i.now = func() time.Time { return now }
	var noted []string
	ctx := api.WithCaller(t.Context(), &api.Caller{Changed: func(object, before, after string) { noted = append(noted, object, before, after) }})
	r, err := i.MintDevToken(ctx, &pb.MintDevTokenRequest{
		Subject: "alice", Audiences: []string{"support-desk", "shop"}, Ttl: durationpb.New(10 * time.Minute),
		Claims: map[string]string{"plan": `"gold"`, "roles": `["a","b"]`, "level": "9007199254740993"},
	})
	if err != nil {
		t.Fatal(err)
	}
	described, err := i.GetDevIssuer(ctx, &pb.GetDevIssuerRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal([]byte(described.GetJwks()), &set); err != nil || len(set.Keys) != 1 {
		t.Fatalf("%d keys, %v", len(set.Keys), err)
	}
	if _, private := set.Keys[0].Key.(*ecdsa.PrivateKey); private {
		t.Error("the set holds the private key")
	}
	parsed, err := jwt.ParseSigned(r.GetToken(), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Headers[0].KeyID != set.Keys[0].KeyID {
		t.Errorf("kid %q, in the set %q", parsed.Headers[0].KeyID, set.Keys[0].KeyID)
	}
	var claims jwt.Claims
	var extra map[string]json.RawMessage
	if err := parsed.Claims(set.Keys[0].Key, &claims, &extra); err != nil {
		t.Fatal(err)
	}
	if err := claims.ValidateWithLeeway(jwt.Expected{Issuer: URL, Subject: "alice", AnyAudience: jwt.Audience{"shop"}, Time: now}, 0); err != nil {
		t.Error(err)
	}
	if !claims.Expiry.Time().Equal(now.Add(10*time.Minute)) || !r.GetExpireTime().AsTime().Equal(now.Add(10*time.Minute)) {
		t.Errorf("expires %s, said %s", claims.Expiry.Time(), r.GetExpireTime().AsTime())
	}
	if string(extra["plan"]) != `"gold"` || string(extra["level"]) != "9007199254740993" || string(extra["roles"]) != `["a","b"]` {
		t.Errorf("claims %s", extra)
	}
	if len(noted) != 3 || !strings.Contains(noted[0], `sub="alice"`) || !strings.Contains(noted[0], `"shop"`) || noted[2] == "" || strings.Contains(strings.Join(noted, " "), r.GetToken()) {
		t.Errorf("for the audit record: %q", noted)
	}
}

func TestMintErrors(t *testing.T) {
	st := openStore(t, t.TempDir())
	defer st.Close()
	i := open(t, st)
	long := strings.Repeat("x", 4000)
	for name, c := range map[string]struct {
		request *pb.MintDevTokenRequest
		want    []string
	}{
		"no subject":          {&pb.MintDevTokenRequest{}, []string{"subject"}},
		"for too long":        {&pb.MintDevTokenRequest{Subject: "a", Ttl: durationpb.New(25 * time.Hour)}, []string{"ttl"}},
		"a standard claim":    {&pb.MintDevTokenRequest{Subject: "a", Claims: map[string]string{"sub": `"b"`, "exp": "9"}}, []string{`claims["exp"]`, `claims["sub"]`}},
		"not JSON":            {&pb.MintDevTokenRequest{Subject: "a", Claims: map[string]string{"x": "gold", "y": "{}{}"}}, []string{`claims["x"]`, `claims["y"]`, "quotation marks"}},
		"an empty audience":   {&pb.MintDevTokenRequest{Subject: "a", Audiences: []string{""}}, []string{"audiences"}},
		"larger than proxies": {&pb.MintDevTokenRequest{Subject: "a", Claims: map[string]string{"a": `"` + long + `"`, "b": `"` + long + `"`, "c": `"` + long + `"`, "d": `"` + long + `"`}}, []string{"bytes"}},
	} {
		_, err := i.MintDevToken(t.Context(), c.request)
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v does not say %q", name, err, w)
			}
		}
	}
	var none Issuer
	if _, err := none.MintDevToken(t.Context(), &pb.MintDevTokenRequest{Subject: "a"}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--dev-issuer") {
		t.Errorf("without an issuer: %v", err)
	}
	if _, err := none.GetDevIssuer(t.Context(), &pb.GetDevIssuerRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("without an issuer: %v", err)
	}
}
