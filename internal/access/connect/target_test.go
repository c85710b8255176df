package connect

import (
	"crypto/tls"
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
