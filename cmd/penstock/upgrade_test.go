package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/penstock-gateway/penstock/internal/envoytest"
)

// oldStore is a stage whose data folder is that of an earlier version, see
// testdata/upgrade/README.md.
func oldStore(t *testing.T, page string) *stage {
	t.Helper()
	s := newStage(t, page)
	data := filepath.Join(s.dir, ".penstock")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-C", data, "-xzf", filepath.Join("testdata", "upgrade", "store-a54e6fa.tar.gz")).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	config, err := os.ReadFile(filepath.Join("testdata", "upgrade", "config.yaml"))
	if err == nil {
		err = os.WriteFile(filepath.Join(s.dir, "config.yaml"), config, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.env = append(s.env, "PATH="+s.dir+":"+filepath.Join(s.dir, "bin")+":"+os.Getenv("PATH"))
	return s
}

// TestUpgradePage follows docs/upgrade.md on the store of an earlier version.
func TestUpgradePage(t *testing.T) { oldStore(t, "upgrade.md").play(t) }

// TestUpgrade: what an earlier version stored serves as it did: a route, one that asks for a
// token by a secret, a certificate, rollbacks to its revisions. Only ports are others here.
// Until the proxy has joined, an apply ends with 3: what it stores, nobody serves yet.
func TestUpgrade(t *testing.T) {
	s := oldStore(t, "upgrade.md")
	s.here["8080"], s.here["8443"] = strconv.Itoa(envoytest.FreePort(t)), strconv.Itoa(envoytest.FreePort(t))
	s.must(t, "penstock control --api-listen 127.0.0.1:7400 --http-listen 127.0.0.1:7480 --xds-listen 127.0.0.1:7401 > control.log 2>&1 & echo $! > control.pid")
	s.must(t, "until curl -sf http://127.0.0.1:7480/readyz; do sleep 0.2; done")
	if out := s.must(t, "penstock apply -f config.yaml || [ $? = 3 ]"); !strings.Contains(out, "revision 5: no change") {
		t.Errorf("the same file changes something:\n%s", out)
	}
	s.must(t, fmt.Sprintf("sed 's/port: 8080/port: %s/; s/port: 8443/port: %s/' config.yaml > moved.yaml && { penstock apply -f moved.yaml || [ $? = 3 ]; }", s.here["8080"], s.here["8443"]))
	s.must(t, "penstock proxy token --gateway edge --name edge-1 > token")
	s.must(t, "penstock proxy join --token-file token --control 127.0.0.1:7401 --dir edge-1")
	s.must(t, "penstock proxy run --dir edge-1 > edge-1.log 2>&1 & echo $! > edge-1.pid")
	s.must(t, "until curl -sf http://127.0.0.1:8080/; do sleep 0.2; done")
	await(t, func() error { // serving, by status: rules that ask for tokens may come after the first answer
		if out, _ := s.run(t, "penstock status"); !strings.Contains(out, "serving on 1 of 1 proxies") {
			return errors.New(out)
		}
		return nil
	})
	if got := s.must(t, "curl -s -o answer -w '%{http_code}' http://127.0.0.1:8080/account"); got != "401" {
		t.Errorf("a route that asks for a token answers %s without one", got)
	}
	pem, err := os.ReadFile(filepath.Join(s.dir, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	chain, _, _ := strings.Cut(string(pem), "private_key")
	if !roots.AppendCertsFromPEM([]byte(strings.ReplaceAll(chain[strings.Index(chain, "    -----"):], "    ", ""))) {
		t.Fatal("no certificate in config.yaml")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "shop.example.com"}}}
	defer client.CloseIdleConnections()
	res, err := client.Get("https://" + s.ports("127.0.0.1:8443", false) + "/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("HTTPS answers %s", res.Status)
	}
	if out := s.must(t, "penstock diff 1 2 || [ $? = 2 ]"); !strings.Contains(out, "hello again") {
		t.Errorf("diff of old revisions:\n%s", out)
	}
	if out := s.must(t, "penstock rollback 2 --dry-run"); !strings.Contains(out, "hello again") {
		t.Errorf("rollback to an old revision:\n%s", out)
	}
}
