package connect

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/penstock-gateway/penstock/internal/keyfile"
)

// DefaultAddress is where `penstock up` and `penstock control` serve the API.
const DefaultAddress = "127.0.0.1:7400"

// Target is a control plane and how to call it.
type Target struct {
	// Name is for messages: "the context prod".
	Name string
	// DataDir is its data folder, when it runs on this machine.
	DataDir string
	// Socket and RESTSocket are used before the addresses.
	Socket, RESTSocket string
	// Address is host:port of gRPC, HTTP that of REST ("" when it is not known).
	Address, HTTP string
	// Token is sent with each call; "" for a socket.
	Token string
	// TLS is how the addresses are called; nil: without.
	TLS *tls.Config
	// guessed tells that nobody said whether TLS is spoken there.
	guessed bool
	// Project is the project of short names; "" when it is not said.
	Project string
}

// Where says which control plane is meant, and by which credential.
type Where struct {
	// DataDir is the folder of one on this machine (--data-dir).
	DataDir string
	// Server is an address, host:port or https://host:port (--server).
	Server string
	// Context is the name of a context (--context).
	Context string
}

// Find returns the control plane that is meant: what Where says or else the
// environment (PENSTOCK_DATA_DIR, PENSTOCK_CONTEXT, PENSTOCK_SERVER), else the
// context that is in use, else the one that runs on this machine. The token of the
// environment is for a server that is named only.
func Find(w Where) (*Target, error) {
	w = w.orEnvironment()
	switch {
	case w.DataDir != "" && w.Server == "":
		return ofDataDir(w.DataDir)
	case w.Server != "":
		if e, err := Read(w.DataDir); w.DataDir != "" && err == nil && e != nil && e.API == w.Server {
			return e.target(), nil
		}
		return ofServer(w.Server)
	case w.Context != "":
		c, err := LoadContexts()
		if err != nil {
			return nil, err
		}
		return c.target(w.Context)
	}
	if c, err := LoadContexts(); err != nil {
		return nil, err
	} else if c.Current != "" {
		return c.target(c.Current)
	}
	return ofMachine()
}

func (w Where) orEnvironment() Where {
	if w == (Where{}) {
		w = Where{DataDir: os.Getenv("PENSTOCK_DATA_DIR"), Server: os.Getenv("PENSTOCK_SERVER"), Context: os.Getenv("PENSTOCK_CONTEXT")}
	}
	return w
}

// Project is the project of short names of the context that is meant; "" when none
// is, or it does not say.
func Project(w Where) (string, error) {
	w = w.orEnvironment()
	if w.DataDir != "" || w.Server != "" {
		return "", nil
	}
	all, err := LoadContexts()
	if err != nil {
		return "", err
	}
	name := cmp.Or(w.Context, all.Current)
	if name == "" {
		return "", nil
	}
	x, err := all.Get(name)
	if err != nil {
		return "", err
	}
	return x.Project, nil
}

// ErrNone says that nothing runs where a control plane was looked for.
var ErrNone = errors.New("no control plane runs")

// ofDataDir is the control plane of a data folder.
func ofDataDir(dir string) (*Target, error) {
	e, err := Read(dir)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("%s belongs to another user: ask the owner for a token (`penstock access token create`), and use it with `penstock login`", dir)
	}
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, fmt.Errorf("%w on the data folder %s: is `penstock up` running, and is that its --data-dir?", ErrNone, dir)
	}
	return e.target(), nil
}

func (e *Endpoint) target() *Target {
	return &Target{Name: "the control plane of " + e.DataDir, DataDir: e.DataDir, Socket: e.APISocket, RESTSocket: e.RESTSocket, Address: e.API, HTTP: e.HTTP}
}

// ofMachine is the control plane that this user runs on this machine: that of the
// working folder, the only one, or the one at the usual address.
func ofMachine() (*Target, error) {
	if dir, err := filepath.Abs(".penstock"); err == nil && own(Dir(dir)) {
		if e, err := Read(dir); err == nil && e != nil {
			return e.target(), nil
		}
	}
	all := Running()
	if len(all) == 1 {
		return all[0].target(), nil
	}
	var folders []string
	var usual []*Endpoint
	for _, e := range all {
		folders = append(folders, e.DataDir)
		if e.API == DefaultAddress {
			usual = append(usual, e)
		}
	}
	if len(usual) == 1 {
		return usual[0].target(), nil
	}
	if len(all) > 1 {
		return nil, fmt.Errorf("several control planes run on this machine: say which one with --data-dir (or PENSTOCK_DATA_DIR): %s", strings.Join(folders, ", "))
	}
	return ofUsualAddress()
}

// ofUsualAddress is whatever listens at the usual address. Nobody named it, and while no control
// plane of this user runs, any process of the machine may be there: a token of the
// environment is not sent to it.
func ofUsualAddress() (*Target, error) {
	token, variable, err := tokenOfEnvironment()
	if err != nil {
		return nil, err
	}
	if token != "" {
		return nil, fmt.Errorf("%w on this machine as your user, and %s is sent only to a server that is named, since any process may listen on %s: say which one with --server (or PENSTOCK_SERVER)", ErrNone, variable, DefaultAddress)
	}
	return &Target{Name: DefaultAddress, Address: DefaultAddress, guessed: true}, nil
}

// LocalDataDir is the data folder of the control plane that this user runs on this
// machine, found as Find does; "": there is none, or several.
func LocalDataDir() string {
	if t, err := ofMachine(); err == nil {
		return t.DataDir
	}
	return ""
}

// ofServer is the control plane at an address, with the credential of the
// environment. One of this machine that this user runs is called by its socket.
func ofServer(server string) (*Target, error) {
	token, _, err := tokenOfEnvironment()
	if err != nil {
		return nil, err
	}
	at, err := parseServer(server)
	if err != nil {
		return nil, err
	}
	if !at.secure {
		for _, e := range Running() {
			if e.API != at.address {
				continue
			}
			if token == "" {
				return e.target(), nil
			}
			// One's own control plane, and nobody else, is at that address.
			at.plain = at.plain || !e.TLS
		}
	}
	caFile, certFile, keyFile := os.Getenv("PENSTOCK_CA_FILE"), os.Getenv("PENSTOCK_CERT_FILE"), os.Getenv("PENSTOCK_KEY_FILE")
	return at.target(token, caFile, certFile, keyFile)
}

// serverAddress is what a server was named as.
type serverAddress struct {
	address string // host:port
	// secure tells that it must be TLS, plain that it must not.
	secure, plain bool
}

// target is the control plane there. A credential goes to one that proves who it is, unless
// http:// was said: any process of the machine may listen on a port that is free.
func (a serverAddress) target(token, caFile, certFile, keyFile string) (t *Target, err error) {
	t = &Target{Name: a.address, Address: a.address, Token: token}
	credential := token != "" || certFile != ""
	switch {
	case a.secure, credential && !a.plain:
		t.TLS, err = clientTLS(token, caFile, certFile, keyFile)
	case !a.plain:
		t.guessed = true
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// parseServer takes host:port, https://host:port or http://host:port apart. It must be
// TLS beyond this machine, and where https is said.
func parseServer(s string) (serverAddress, error) {
	address, https := strings.CutPrefix(s, "https://")
	address, plain := strings.CutPrefix(address, "http://")
	address = strings.TrimSuffix(address, "/")
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return serverAddress{}, fmt.Errorf("the server %q is not HOST:PORT", s)
	}
	ip, err := netip.ParseAddr(host)
	local := host == "localhost" || err == nil && ip.IsLoopback()
	if plain && !local {
		return serverAddress{}, fmt.Errorf("the server %q is not on this machine, and what is said to it without TLS can be read on the way: say https://", s)
	}
	return serverAddress{address: address, secure: https || !local, plain: plain}, nil
}

// tokenOfEnvironment is PENSTOCK_TOKEN, or the content of the file PENSTOCK_TOKEN_FILE,
// and the variable that it is from; "" when neither is set.
func tokenOfEnvironment() (token, variable string, err error) {
	const text, file = "PENSTOCK_TOKEN", "PENSTOCK_TOKEN_FILE"
	if t := strings.TrimSpace(os.Getenv(text)); t != "" {
		return t, text, nil
	}
	if f := os.Getenv(file); f != "" {
		t, err := ReadToken(f, nil)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", file, err)
		}
		return t, file, nil
	}
	return "", "", nil
}

// maxToken bounds the text of a token.
const maxToken = 16 << 10

// ReadToken reads a token from a file that only its owner can read, or from in when
// the file is "-".
func ReadToken(file string, in io.Reader) (string, error) {
	if file != "-" {
		if err := keyfile.Check(file); err != nil {
			return "", err
		}
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxToken))
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if text == "" {
		return "", errors.New("it is empty")
	}
	return text, nil
}

// Dial makes a gRPC connection; it is dialled at the first call.
func (t *Target) Dial(opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	if t.Socket != "" {
		return grpc.NewClient("unix:"+t.Socket, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))...)
	}
	creds := insecure.NewCredentials()
	if t.TLS != nil {
		creds = secured{credentials.NewTLS(t.TLS), t.Address}
	}
	if t.guessed {
		opts = append(opts, grpc.WithContextDialer(dialPlain))
	}
	opts = append(opts, grpc.WithTransportCredentials(creds))
	if t.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(Bearer(t.Token)))
	}
	return grpc.NewClient("passthrough:///"+t.Address, opts...)
}

// Bearer sends a token with each call. parseServer sees to it that it is never sent
// over a network without TLS.
type Bearer string

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (b Bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (Bearer) RequireTransportSecurity() bool { return false }

// Client is an HTTP client for REST and the debug pages, and the URL that paths are
// below.
func (t *Target) Client() (*http.Client, string, error) {
	if t.RESTSocket != "" {
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", t.RESTSocket)
		}
		return &http.Client{Transport: &http.Transport{DialContext: dial}}, "http://localhost", nil
	}
	if t.HTTP == "" {
		return nil, "", fmt.Errorf("the HTTP address of %s is not known: say it with --http", t.Name)
	}
	at, err := parseServer(t.HTTP)
	if err != nil {
		return nil, "", err
	}
	if at.secure && t.TLS == nil {
		return nil, "", fmt.Errorf("the HTTP address %q asks for TLS, as every one that is not on this machine does, and %s is called without: say https:// before the address of the server, too", t.HTTP, t.Name)
	}
	tr := &http.Transport{}
	base := "http://" + at.address
	if t.TLS != nil {
		tr.TLSClientConfig, base = t.TLS.Clone(), "https://"+at.address
	}
	return &http.Client{Transport: bearerTransport{t.Token, tr}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, base, nil
}

type bearerTransport struct {
	token string
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (b bearerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return b.next.RoundTrip(r)
}
