package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// renewed makes the files of an identity twice, and returns what the certificate's file
// held the first time.
func renewed(t *testing.T, ca *CA, dir, base string, r Request) (certFile, keyFile string, old []byte) {
	t.Helper()
	certFile, keyFile, err := ca.EnsureFiles(dir, base, r)
	if err != nil {
		t.Fatal(err)
	}
	if old, err = os.ReadFile(certFile); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(certFile); err != nil { // so that it is made again
		t.Fatal(err)
	}
	if _, _, err := ca.EnsureFiles(dir, base, r); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile, old
}

// TestPairBetween: who comes when the key was replaced and the certificate not yet, or
// between two processes that made both, has a pair: the one of the key.
func TestPairBetween(t *testing.T) {
	dir := t.TempDir()
	ca := openCA(t, filepath.Join(dir, "ca"))
	r := Request{SPIFFE: "spiffe://penstock.local/control", DNS: []string{"localhost"}}
	cert, key, old := renewed(t, ca, dir, "control", r)
	now, err := readCert(cert)
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, cert, old)
	if m := mode(t, key); m != 0o600 {
		t.Errorf("the key has mode %o", m)
	}
	if _, err := readKey(key); err != nil {
		t.Errorf("who wants the key only: %v", err)
	}
	pair, err := loadPair(cert, key)
	if err != nil || !pair.Leaf.Equal(now) {
		t.Fatalf("not the pair of the key: %v", err)
	}
	// By the configurations of servers and clients.
	conf, err := ServerTLS(cert, key, ca.CertFile())
	if err != nil {
		t.Fatal(err)
	}
	edge := ProxyID("default", "-", "edge")
	ccert, ckey, cold := renewed(t, ca, dir, "edge", Request{SPIFFE: edge})
	mustWrite(t, ccert, cold)
	client, err := ClientTLS(ccert, ckey, ca.CertFile(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	if id, err := whoami(t, serve(t, conf), client); err != nil || id != edge {
		t.Errorf("got %q, %v", id, err)
	}
	// The next one who makes sure of the files makes them whole.
	if _, _, err := ca.EnsureFiles(dir, "control", r); err != nil {
		t.Fatal(err)
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Error(err)
	}
}

// TestPairOfAnother: a key never brings in another identity, or authority, than that of
// the certificate that was named.
func TestPairOfAnother(t *testing.T) {
	dir := t.TempDir()
	ca, other := openCA(t, filepath.Join(dir, "ca")), openCA(t, filepath.Join(dir, "other"))
	ensure := func(ca *CA, base, id string) (cert, key string) {
		t.Helper()
		cert, key, err := ca.EnsureFiles(dir, base, Request{SPIFFE: id})
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	const control = "spiffe://penstock.local/control"
	cert, _ := ensure(ca, "control", control)
	_, edge := ensure(ca, "edge", ProxyID("default", "-", "edge"))
	_, foreign := ensure(other, "foreign", control)
	alone := filepath.Join(dir, "alone.key")
	b, err := newKeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, alone, b)
	mustWrite(t, filepath.Join(dir, "broken.crt"), []byte("broken"))
	for what, files := range map[string][2]string{
		"another identity": {cert, edge}, "another authority": {cert, foreign}, "a key alone": {cert, alone},
		"a broken certificate": {filepath.Join(dir, "broken.crt"), edge}, "no key": {cert, cert},
	} {
		if pair, err := loadPair(files[0], files[1]); err == nil {
			t.Errorf("%s: %v", what, pair.Leaf.URIs)
		}
	}
}

// TestPairMeanwhile reads pairs while several processes renew them.
func TestPairMeanwhile(t *testing.T) {
	dir := t.TempDir()
	ca := openCA(t, filepath.Join(dir, "ca"))
	r := Request{SPIFFE: "spiffe://penstock.local/control"}
	cert, key, err := ca.EnsureFiles(dir, "control", r)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	var writers, readers sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		writers.Go(func() {
			for range 100 {
				certPEM, keyPEM, err := ca.Issue(r)
				if err := errors.Join(err, writePair(cert, key, certPEM, keyPEM)); err != nil {
					t.Error(err)
				}
			}
		})
		readers.Go(func() {
			for {
				pair, err := loadPair(cert, key)
				if err == nil {
					_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
				}
				if err != nil {
					t.Error(err)
					return
				}
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
}
