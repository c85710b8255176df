package envoytest_test

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	// The types that the JSON below names.
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/penstock-gateway/penstock/internal/envoytest"
	"github.com/penstock-gateway/penstock/internal/launch"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

// answering is an Envoy that answers every request itself.
func answering(t *testing.T, port int) *bootstrapv3.Bootstrap {
	t.Helper()
	b := &bootstrapv3.Bootstrap{}
	err := protojson.Unmarshal([]byte(`{"static_resources": {"listeners": [{
		"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": `+strconv.Itoa(port)+`}},
		"filter_chains": [{"filters": [{"name": "http", "typed_config": {
			"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
			"stat_prefix": "in",
			"route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "hello"}}}]}]},
			"http_filters": [{"name": "router", "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]
		}}]}]}]}}`), b)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServes(t *testing.T) {
	port := envoytest.FreePort(t)
	e := envoytest.Start(t, envoytest.Options{Bootstrap: answering(t, port), Concurrency: 2, LogLevel: "info,router:debug"})
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("status %d", res.StatusCode)
	}
	if n := e.Stat(t, "http.in.downstream_rq_2xx"); n != 1 {
		t.Errorf("http.in.downstream_rq_2xx is %d, want 1", n)
	}
	if n := e.Stat(t, "no.such.statistic"); n != 0 {
		t.Errorf("an absent statistic is %d", n)
	}
	if dump := e.Admin(t, "/config_dump"); !strings.Contains(dump, "inline_string") {
		t.Errorf("config dump lacks the route:\n%.500s", dump)
	}
	e.AdminPost(t, "/reset_counters")
	if n := e.Stat(t, "http.in.downstream_rq_2xx"); n != 0 {
		t.Errorf("after a reset http.in.downstream_rq_2xx is %d", n)
	}
	if !strings.Contains(e.Log(t), "starting main dispatch loop") {
		t.Errorf("the log lacks Envoy's start:\n%s", e.Log(t))
	}
	id, err := launch.Identify(e.Pid())
	if err != nil {
		t.Fatal(err)
	}
	e.Kill()
	if id.Alive() {
		t.Error("Envoy runs after Kill")
	}
	e.Kill() // a second time does no harm
}

// TestManyAtOnce: Envoys do not share anything, and one without its control plane
// starts too.
func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	pids := make([]int, 4)
	for i := range pids {
		port := envoytest.FreePort(t)
		b := answering(t, port)
		wg.Go(func() { pids[i] = envoytest.Start(t, envoytest.Options{Bootstrap: b}).Pid() })
	}
	wg.Wait()
	seen := map[int]bool{}
	for _, pid := range pids {
		if pid == 0 || seen[pid] {
			t.Errorf("pids %v", pids)
		}
		seen[pid] = true
	}
}

func TestStopsWithTheTest(t *testing.T) {
	var id launch.ID
	t.Run("inner", func(t *testing.T) {
		e := envoytest.Start(t, envoytest.Options{Config: bootstrap.Config{NodeID: "inner"}})
		var err error
		if id, err = launch.Identify(e.Pid()); err != nil {
			t.Fatal(err)
		}
	})
	if id.Alive() {
		t.Errorf("Envoy %d runs after its test", id.PID)
	}
}

func TestValidate(t *testing.T) {
	if err := envoytest.Validate(t, answering(t, 1)); err != nil {
		t.Error(err)
	}
	bad := answering(t, 1)
	bad.StaticResources.Listeners[0].FilterChains[0].Filters[0].Name = ""
	if err := envoytest.Validate(t, bad); err == nil || !strings.Contains(err.Error(), "Name") {
		t.Errorf("a filter without a name: error %v", err)
	}
}
