package connect

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestClientNeedsTLS: a token is never sent to an address beyond this machine without
// TLS, whichever way the address of HTTP is written.
func TestClientNeedsTLS(t *testing.T) {
	config := &tls.Config{ServerName: "control.example.com"}
	for _, c := range []struct {
		http string
		tls  *tls.Config
		base string // "": refused
	}{
		{"127.0.0.1:7480", nil, "http://127.0.0.1:7480"},
		{"http://localhost:7480", nil, "http://localhost:7480"},
		{"control.example.com:7480", config, "https://control.example.com:7480"},
		{"https://control.example.com:7480", config, "https://control.example.com:7480"},
		{"127.0.0.1:7480", config, "https://127.0.0.1:7480"},
		{"control.example.com:7480", nil, ""},
		{"192.0.2.1:7480", nil, ""},
		{"https://127.0.0.1:7480", nil, ""},
		{"http://control.example.com:7480", config, ""},
		{"control.example.com", config, ""},
	} {
		target := &Target{Name: "the context dev", Address: "127.0.0.1:7400", HTTP: c.http, Token: "secret", TLS: c.tls}
		_, base, err := target.Client()
		if (err != nil) != (c.base == "") || base != c.base || err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %q, %v; want %q", c.http, base, err, c.base)
		}
	}
}

// TestTokenIsForNamedServers: a token of the environment goes to a server that somebody
// named, and never to whoever listens at the usual address.
func TestTokenIsForNamedServers(t *testing.T) {
	home := t.TempDir()
	t.Chdir(home)
	for _, name := range []string{"PENSTOCK_DATA_DIR", "PENSTOCK_SERVER", "PENSTOCK_CONTEXT", "PENSTOCK_TOKEN", "PENSTOCK_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("XDG_RUNTIME_DIR", home)
	t.Setenv("PENSTOCK_CONTEXTS_FILE", filepath.Join(home, "contexts.yaml"))
	if target, err := Find(Where{}); err != nil || target.Address != DefaultAddress || target.Token != "" {
		t.Errorf("without a token: %+v, %v", target, err)
	}
	file := filepath.Join(home, "token")
	if err := os.WriteFile(file, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(home, "data")
	if err := os.MkdirAll(Dir(data), 0o700); err != nil {
		t.Fatal(err)
	}
	for variable, value := range map[string]string{"PENSTOCK_TOKEN": "secret", "PENSTOCK_TOKEN_FILE": file} {
		t.Setenv("PENSTOCK_TOKEN", "")
		t.Setenv(variable, value)
		target, err := Find(Where{})
		if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), variable+" is sent only to a server that is named") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s alone: %+v, %v", variable, target, err)
		}
		// As the hint of the error says.
		if target, err = Find(Where{Server: DefaultAddress}); err != nil || target.Token != "secret" {
			t.Errorf("%s, --server: %+v, %v", variable, target, err)
		}
		t.Setenv("PENSTOCK_SERVER", DefaultAddress)
		if target, err = Find(Where{}); err != nil || target.Token != "secret" {
			t.Errorf("%s, PENSTOCK_SERVER: %+v, %v", variable, target, err)
		}
		t.Setenv("PENSTOCK_SERVER", "")
		// One's own control plane is called by its socket, with no token.
		withdraw, err := Announce(Endpoint{DataDir: data, API: DefaultAddress, APISocket: filepath.Join(data, "api.sock")})
		if err != nil {
			t.Fatal(err)
		}
		if target, err = Find(Where{}); err != nil || target.Socket == "" || target.Token != "" {
			t.Errorf("%s, one's own: %+v, %v", variable, target, err)
		}
		withdraw()
	}
}
