package store_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestUnreachable: where there is no connection to etcd the error says why, and how to
// mend it, and not only that there was no answer.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	good := external.options(t)
	https := good.Endpoints[0]
	plain := embed.NewConfig()
	plain.Name, plain.Dir, plain.LogLevel = "plain", t.TempDir(), "fatal"
	plain.ListenClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	plain.AdvertiseClientUrls, plain.ListenPeerUrls = plain.ListenClientUrls, nil
	plain.AdvertisePeerUrls = plain.ListenClientUrls
	plain.InitialCluster = plain.InitialClusterFromName(plain.Name)
	server, err := embed.StartEtcd(plain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	stranger := etcdServer{dir: t.TempDir()}
	if err := stranger.certificates(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name     string
		endpoint string
		tls      *tls.Config
		want     []string
	}{
		{"nobody there", "https://127.0.0.1:1", good.TLS, []string{"connection refused"}},
		{"no authority", https, &tls.Config{RootCAs: x509.NewCertPool()}, []string{"unknown authority", "--etcd-cacert"}},
		{"no client certificate", https, &tls.Config{RootCAs: good.TLS.RootCAs}, []string{"certificate required", "--etcd-cert"}},
		{"client certificate of another authority", https, &tls.Config{RootCAs: good.TLS.RootCAs, Certificates: stranger.client.Certificates},
			[]string{"unknown certificate authority", "--etcd-cert"}},
		{"plain text to TLS", strings.TrimPrefix(https, "https://"), nil, []string{"https://"}},
		{"TLS to plain text", "https://" + server.Clients[0].Addr().String(), good.TLS, []string{"https://", "or http://"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, err := store.Open(t.Context(), store.Options{
				Endpoints: []string{c.endpoint}, TLS: c.tls, Logger: quiet, RequestTimeout: time.Second,
			})
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			for _, want := range append(c.want, "cannot be reached") {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\ndoes not say %q", err, want)
				}
			}
		})
	}
}

// TestEtcdUsers: with etcd's own access control the user is the common name of the client's
// certificate. The error says which right is missing, and with it the store works.
func TestEtcdUsers(t *testing.T) {
	t.Parallel()
	e := etcdServer{dir: t.TempDir()}
	if err := e.certificates(); err != nil {
		t.Fatal(err)
	}
	if err := e.serve("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.stop)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{e.endpoint()}, TLS: e.client})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close() })
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	var errs [6]error
	_, errs[0] = admin.UserAdd(ctx, "root", "secret")
	_, errs[1] = admin.UserGrantRole(ctx, "root", "root")
	_, errs[2] = admin.RoleAdd(ctx, "penstock")
	_, errs[3] = admin.RoleGrantPermission(ctx, "penstock", "/penstock/", "/penstock0", clientv3.PermissionType(clientv3.PermReadWrite))
	_, errs[4] = admin.UserAddWithOptions(ctx, "test", "", &clientv3.UserAddOptions{NoPassword: true})
	_, errs[5] = admin.AuthEnable(ctx)
	for _, err := range errs {
		do(err)
	}
	o := store.Options{Endpoints: []string{e.endpoint()}, TLS: e.client, Logger: quiet, SealKey: sealKey}
	if s, err := store.Open(ctx, o); err == nil {
		s.Close()
		t.Error("opened without a right")
	} else if !strings.Contains(err.Error(), "--prefix=true readwrite /penstock/") {
		t.Errorf("%v does not say which right is missing", err)
	}
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{e.endpoint()}, TLS: e.client, Username: "root", Password: "secret"})
	do(err)
	t.Cleanup(func() { root.Close() })
	_, err = root.UserGrantRole(ctx, "test", "penstock")
	do(err)
	s := open(t, o)
	do(s.PutState(context.WithoutCancel(ctx), "k", []byte("v")))
	if got, err := s.State(ctx, ""); err != nil || string(got["k"]) != "v" {
		t.Errorf("state: %q, %v", got, err)
	}
}

// TestInterrupted: a commit that etcd lost its leader in is made once, whether it had
// happened or not, with a request id and without.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	for _, id := range []string{"", "request"} {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("id %q done %v", id, done), func(t *testing.T) {
				t.Parallel()
				s := open(t, external.options(t))
				commit := func(s store.Store, base int64, content, id string) (store.Revision, error) {
					return s.Commit(t.Context(), base, storetest.Routes(0, 1, content), store.Info{RequestID: id})
				}
				if _, err := commit(s, 0, "first", ""); err != nil {
					t.Fatal(err)
				}
				store.Interrupt(s, store.Interruption{Done: done}, store.Interruption{Done: done})
				rev, err := commit(s, 1, "second", id)
				if err != nil || rev.Number != 2 || rev.Changes != 1 {
					t.Fatalf("commit: %+v, %v", rev, err)
				}
				if head, err := s.Head(t.Context()); err != nil || head != rev {
					t.Errorf("head: %+v, %v, want %+v", head, err, rev)
				}
				if rev, err := commit(s, 2, "third", ""); err != nil || rev.Number != 3 {
					t.Errorf("the next commit: %+v, %v", rev, err)
				}
			})
		}
	}
	t.Run("another replica was faster", func(t *testing.T) {
		t.Parallel()
		o := external.options(t)
		s, other := open(t, o), open(t, o)
		store.Interrupt(s, store.Interruption{Then: func() {
			if _, err := other.Commit(t.Context(), 0, storetest.Routes(0, 1, "other"), store.Info{}); err != nil {
				t.Error(err)
			}
		}})
		_, err := s.Commit(t.Context(), 0, storetest.Routes(0, 1, "ours"), store.Info{})
		if conflict, ok := errors.AsType[*store.ConflictError](err); !ok || conflict.Head != 1 {
			t.Errorf("commit: %v, want a conflict with revision 1", err)
		}
	})
}
