package bootstrap_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func example() bootstrap.Config {
	return bootstrap.Config{
		NodeID: "edge-1", Cluster: "edge", Region: "eu", Zone: "eu-1",
		XDSAddresses: []string{"127.0.0.1:7401"}, XDSServerName: "control.example",
		CAFile: "/pki/ca.crt", CertFile: "/pki/edge-1.crt", KeyFile: "/pki/edge-1.key", SDSDir: "/run/penstock",
		AdminSocket: "/run/penstock/admin.sock",
		Listeners:   []string{"default/edge/http"},
		FastTraces:  true,
	}
}

func TestGolden(t *testing.T) {
	got, err := bootstrap.JSON(example())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "bootstrap.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("bootstrap changed (-want +got); rerun with -update if that is meant:\n%s", diff)
	}
	again, err := bootstrap.JSON(example())
	if err != nil || string(again) != string(got) {
		t.Errorf("the same Config made other bytes the second time (%v)", err)
	}
}

func TestBadConfig(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*bootstrap.Config)
		want   []string
	}{
		{"no node", func(c *bootstrap.Config) { c.NodeID = "" }, []string{"NodeID is empty"}},
		{"long socket", func(c *bootstrap.Config) { c.AdminSocket = "/" + strings.Repeat("a", 107) }, []string{"108 bytes long", "shorter directory"}},
		{"address without port", func(c *bootstrap.Config) { c.XDSAddresses = []string{"control"} }, []string{`"control" is not host:port`}},
		{"port 0", func(c *bootstrap.Config) { c.XDSAddresses = []string{"control:0"} }, []string{"no port from 1 to 65535"}},
		{"second address bad", func(c *bootstrap.Config) { c.XDSAddresses = []string{"control:1", "other"} }, []string{`"other" is not host:port`}},
		{"port too large", func(c *bootstrap.Config) { c.XDSAddresses = []string{"control:65536"} }, []string{"no port from 1 to 65535"}},
		{"no host", func(c *bootstrap.Config) { c.XDSAddresses = []string{":7401"} }, []string{"no host"}},
		{"no certificate", func(c *bootstrap.Config) { c.CertFile = "" }, []string{"CertFile is empty", "mTLS only"}},
		{"relative path", func(c *bootstrap.Config) { c.KeyFile = "edge.key" }, []string{`KeyFile "edge.key" must be an absolute path`}},
		{"small heap", func(c *bootstrap.Config) { c.MaxHeapBytes = 1 }, []string{"at least 16 MiB"}},
		{"negative connections", func(c *bootstrap.Config) { c.MaxConnections = -1 }, []string{"MaxConnections is -1"}},
		{"all problems at once", func(c *bootstrap.Config) { c.NodeID, c.CAFile, c.KeyFile = "", "", "" },
			[]string{"NodeID is empty", "CAFile is empty", "KeyFile is empty"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := example()
			test.change(&c)
			_, err := bootstrap.New(c)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
		})
	}
}

// TestEnvoyAccepts lets the real Envoy judge both forms.
func TestEnvoyAccepts(t *testing.T) {
	ca := newAuthority(t)
	c := ca.config(t, "127.0.0.1:7401")
	c.AdminSocket = filepath.Join(c.SDSDir, "a.sock")
	c.Region, c.Zone, c.Listeners = "eu", "eu-1", []string{"default/edge/http"}
	if err := bootstrap.WriteFiles(filepath.Join(c.SDSDir, "bootstrap.json"), c); err != nil {
		t.Fatal(err)
	}
	dns := c
	dns.XDSAddresses = []string{"localhost:7401"}
	several := c
	several.XDSAddresses = []string{"127.0.0.1:7401", "localhost:7401", "[::1]:7401"}
	static := bootstrap.Config{NodeID: "static"}
	for name, c := range map[string]bootstrap.Config{"control plane by address": c, "control plane by name": dns, "several replicas": several, "static": static} {
		t.Run(name, func(t *testing.T) {
			b, err := bootstrap.New(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := envoytest.Validate(t, b); err != nil {
				t.Error(err)
			}
		})
	}
}
