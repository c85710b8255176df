package bootstrap_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

func TestGRPCGolden(t *testing.T) {
	got, err := bootstrap.GRPC(example())
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "grpc.json")
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
	file := filepath.Join(t.TempDir(), "grpc.json")
	if err := bootstrap.WriteGRPC(file, example()); err != nil {
		t.Fatal(err)
	}
	if written, err := os.ReadFile(file); err != nil || string(written) != string(got) {
		t.Errorf("the file holds %q, %v", written, err)
	}
}

// TestGRPCLocality: the member is there without a region and a zone, too, since gRPC
// for Node.js fails on a bootstrap that lacks it.
func TestGRPCLocality(t *testing.T) {
	c := example()
	c.Region, c.Zone = "", ""
	b, err := bootstrap.GRPC(c)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Node struct {
			Locality map[string]string `json:"locality"`
		} `json:"node"`
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.Node.Locality == nil || len(got.Node.Locality) > 0 {
		t.Errorf("locality %v, want an empty one", got.Node.Locality)
	}
}

// TestGRPCReplicas: every client has all control planes, and not all begin with the
// same one.
func TestGRPCReplicas(t *testing.T) {
	first := map[string]bool{}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		c := example()
		c.NodeID, c.XDSAddresses = name, []string{"one:1", "two:1", "three:1"}
		b, err := bootstrap.GRPC(c)
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Servers []struct {
				URI string `json:"server_uri"`
			} `json:"xds_servers"`
		}
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		var uris []string
		for _, s := range got.Servers {
			uris = append(uris, s.URI)
		}
		first[uris[0]] = true
		if slices.Sort(uris); !slices.Equal(uris, []string{"one:1", "three:1", "two:1"}) {
			t.Errorf("servers %v", uris)
		}
	}
	if len(first) < 2 {
		t.Errorf("all begin with %v", first)
	}
}

func TestGRPCBadConfig(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*bootstrap.Config)
		want   string
	}{
		"no control plane": {func(c *bootstrap.Config) { c.XDSAddresses = nil }, "XDSAddresses is empty"},
		"no node":          {func(c *bootstrap.Config) { c.NodeID = "" }, "NodeID is empty"},
		"no key":           {func(c *bootstrap.Config) { c.KeyFile = "" }, "KeyFile is empty"},
		"bad address":      {func(c *bootstrap.Config) { c.XDSAddresses = []string{"a"} }, "not host:port"},
	} {
		c := example()
		test.change(&c)
		if _, err := bootstrap.GRPC(c); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := bootstrap.WriteGRPC(filepath.Join(t.TempDir(), "x"), c); err == nil {
			t.Errorf("%s: it was written", name)
		}
	}
}
