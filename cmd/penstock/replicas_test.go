package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock-gateway/penstock/internal/toolbox"
)

// TestReplicasPage follows docs/replicas.md: three members of etcd with TLS and access control,
// two control planes, a proxy; each control plane is killed, then two members of etcd, and no
// request fails.
func TestReplicasPage(t *testing.T) {
	etcd, err := toolbox.Etcd(t.Context(), toolbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := newStage(t, "replicas.md", "examples/replicas")
	s.env = append(s.env, "PATH="+filepath.Join(s.dir, "bin")+":"+filepath.Dir(etcd)+":"+os.Getenv("PATH"),
		fmt.Sprintf("ETCD_PORTS=%s %s %s", s.here["12379"], s.here["12380"], s.here["12381"]))
	s.play(t)
}
