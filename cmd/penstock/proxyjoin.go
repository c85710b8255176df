package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/xds/bootstrap"
)

// Files in the folder of a proxy that joined, besides those of bootstrap.
const (
	proxyCert  = "proxy.crt"
	proxyKey   = "proxy.key"
	proxyCA    = "ca.crt"
	proxyEnvoy = "envoy.json"
	proxyGRPC  = "grpc.json"
	proxyState = "join.json"
)

const (
	// joinCallTimeout bounds one call to the control plane, and joinTries the
	// calls of one join or renewal.
	joinCallTimeout = 10 * time.Second
	joinTries       = 3
	joinRetryAfter  = 500 * time.Millisecond
)

// joinFlags are the flags of `penstock proxy join`.
type joinFlags struct {
	token, tokenFile, name string
	control, dir           string
	xds                    []string
	adminSocket            string
	region, zone           string
	maxHeap                uint64
	replace, keepFresh     bool
	grpc                   bool
	logLevel               string
}

// joinState is what a renewal must know, in join.json.
type joinState struct {
	Control  string `json:"control"`
	Identity string `json:"identity"`
	// What `penstock proxy run` starts Envoy with, besides.
	XDS          []string `json:"xds,omitempty"`
	AdminSocket  string   `json:"admin_socket,omitempty"`
	Region       string   `json:"region,omitempty"`
	Zone         string   `json:"zone,omitempty"`
	MaxHeapBytes uint64   `json:"max_heap_bytes,omitempty"`
}

func newProxyJoinCommand() *cobra.Command {
	var f joinFlags
	c := &cobra.Command{
		Use:   "join --token TOKEN --control HOST:PORT --dir DIR",
		Short: "Make this machine's proxy a member: its certificate and Envoy's bootstrap",
		Long: "Makes a key pair in DIR, has the control plane sign it in exchange for the join token, and writes Envoy's\n" +
			"bootstrap. The control plane is known by the hash in the token, so no file has to be there before. With\n" +
			"--keep-fresh it stays and renews the certificate; else see `penstock proxy renew`.",
		Example: "  penstock proxy join --token psj1_… --control control.example.com:7401 --dir /var/lib/penstock/edge-2\n" +
			"  penstock proxy join --grpc --token psj1_… --control control.example.com:7401 --dir /var/lib/penstock/app-1",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runProxyJoin(cmd.Context(), f, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.token, "token", "", "the join token")
	fl.StringVar(&f.tokenFile, "token-file", "", "file that holds the token; - for the standard input")
	fl.StringVar(&f.name, "name", "", "refuse a token that is for a proxy of another name")
	fl.StringVar(&f.control, "control", "", "host:port of the control plane (its --xds-listen)")
	fl.StringVar(&f.dir, "dir", "", "folder of this proxy: key, certificate, bootstrap")
	fl.StringSliceVar(&f.xds, "xds-address", nil, "host:port that Envoy gets its configuration from (repeatable; default: --control)")
	fl.StringVar(&f.adminSocket, "admin-socket", "", "path of Envoy's admin socket (default DIR/admin.sock)")
	fl.StringVar(&f.region, "region", "", "region of this proxy")
	fl.StringVar(&f.zone, "zone", "", "zone of this proxy")
	fl.Uint64Var(&f.maxHeap, "max-heap-bytes", bootstrap.DefaultMaxHeapBytes, "memory at which Envoy's overload manager counts 100 %")
	fl.BoolVar(&f.grpc, "grpc", false, "for a gRPC client without a proxy: write the bootstrap of its xDS client, not Envoy's")
	fl.BoolVar(&f.replace, "replace", false, "join again although DIR holds an identity")
	fl.BoolVar(&f.keepFresh, "keep-fresh", false, "stay, and renew the certificate before two thirds of its life are over")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	_ = c.MarkFlagRequired("control")
	_ = c.MarkFlagRequired("dir")
	c.MarkFlagsMutuallyExclusive("token", "token-file")
	// PENSTOCK_TOKEN is the credential of the configuration API.
	setVariable(fl, "token", "PENSTOCK_JOIN_TOKEN")
	setVariable(fl, "token-file", "PENSTOCK_JOIN_TOKEN_FILE")
	return c
}

func newProxyRenewCommand() *cobra.Command {
	var dir, control, logLevel string
	var keepFresh bool
	c := &cobra.Command{
		Use:   "renew --dir DIR",
		Short: "Get the next certificate of a proxy that joined",
		Long: "Makes a new key pair in DIR and has the control plane sign it for the identity of the certificate that is\n" +
			"there. Envoy takes the new files without losing its stream. Run it from a timer, or with --keep-fresh as a\n" +
			"service beside Envoy.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return fmt.Errorf("--dir: %w", err)
			}
			if keepFresh {
				return keepProxyFresh(cmd.Context(), telemetry.NewLogger(os.Stderr, logLevel, "proxy"), abs, control)
			}
			until, err := renewProxy(cmd.Context(), abs, control)
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "renewed until %s\n", until.Local().Format(time.DateTime))
			}
			return err
		},
	}
	c.Flags().StringVar(&dir, "dir", "", "folder that penstock proxy join made")
	c.Flags().StringVar(&control, "control", "", "host:port of the control plane (default: as it was at the join)")
	c.Flags().BoolVar(&keepFresh, "keep-fresh", false, "stay, and renew before two thirds of the life are over")
	c.Flags().StringVar(&logLevel, "log-level", "info", "debug, info, warn, error")
	_ = c.MarkFlagRequired("dir")
	return c
}

func runProxyJoin(ctx context.Context, f joinFlags, in io.Reader, out io.Writer) error {
	token, err := f.readToken(in)
	if err != nil {
		return err
	}
	if f.dir, err = filepath.Abs(f.dir); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if err := f.check(); err != nil {
		return err
	}
	identity, err := f.join(ctx, token)
	if err != nil {
		return err
	}
	cert, err := pki.ReadCertificate(filepath.Join(f.dir, proxyCert))
	if err != nil {
		return err
	}
	start := "penstock proxy run --dir " + f.dir + "  # renews the certificate, too, and serves without a control plane\n" +
		"or alone:  envoy -c " + filepath.Join(f.dir, proxyEnvoy) + " --disable-hot-restart"
	if f.grpc {
		start = "GRPC_XDS_BOOTSTRAP=" + filepath.Join(f.dir, proxyGRPC) + " and a channel to xds:///HOST"
	}
	fmt.Fprintf(out, "joined as %s until %s\nstart it:  %s\n", identity, cert.NotAfter.Local().Format(time.DateTime), start)
	if !f.keepFresh {
		fmt.Fprintf(out, "renew it:  penstock proxy renew --dir %s --keep-fresh\n", f.dir)
		return nil
	}
	return keepProxyFresh(ctx, telemetry.NewLogger(os.Stderr, f.logLevel, "proxy"), f.dir, f.control)
}

func (f *joinFlags) readToken(in io.Reader) (pki.JoinToken, error) {
	text := f.token
	if f.tokenFile != "" {
		if f.tokenFile != "-" {
			file, err := os.Open(f.tokenFile)
			if err != nil {
				return pki.JoinToken{}, fmt.Errorf("--token-file: %w", err)
			}
			defer file.Close()
			in = file
		}
		b, err := io.ReadAll(io.LimitReader(in, 4096))
		if err != nil {
			return pki.JoinToken{}, fmt.Errorf("--token-file: %w", err)
		}
		text = string(b)
	}
	if strings.TrimSpace(text) == "" {
		return pki.JoinToken{}, errors.New("no join token: give --token-file, or --token; `penstock proxy token` beside the control plane makes one")
	}
	return pki.ParseJoinToken(text)
}

// check finds what is wrong here before the token is used.
func (f *joinFlags) check() error {
	if _, _, err := net.SplitHostPort(f.control); err != nil {
		return fmt.Errorf("--control %q is not host:port: %w", f.control, err)
	}
	if len(f.xds) == 0 {
		f.xds = []string{f.control}
	}
	if f.adminSocket == "" {
		f.adminSocket = filepath.Join(f.dir, "admin.sock")
	}
	if _, err := bootstrap.New(f.bootstrap("default", "-", "proxy")); err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	if cert, err := pki.ReadCertificate(filepath.Join(f.dir, proxyCert)); err == nil && !f.replace {
		return fmt.Errorf("--dir %s holds the identity %v already: renew it with `penstock proxy renew`, choose another folder, or join anew with --replace", f.dir, cert.URIs)
	}
	probe, err := os.CreateTemp(f.dir, ".probe-")
	if err != nil {
		return fmt.Errorf("--dir: %w", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

func (f *joinFlags) bootstrap(project, gateway, name string) bootstrap.Config {
	return bootstrap.Config{
		NodeID: name, Cluster: project + "/" + gateway, Region: f.region, Zone: f.zone,
		XDSAddresses: f.xds, XDSServerName: serverName(f.xds[0]),
		CAFile: filepath.Join(f.dir, proxyCA), CertFile: filepath.Join(f.dir, proxyCert), KeyFile: filepath.Join(f.dir, proxyKey),
		SDSDir: f.dir, AdminSocket: f.adminSocket, MaxHeapBytes: f.maxHeap,
	}
}

// join gets the certificate and writes all files.
func (f *joinFlags) join(ctx context.Context, token pki.JoinToken) (identity string, err error) {
	csr, key, err := pki.NewRequest("")
	if err != nil {
		return "", err
	}
	var resp *pb.JoinResponse
	err = callJoin(ctx, f.control, pki.JoinTLS(token, bootstrap.ControlSPIFFE), func(ctx context.Context, c pb.ProxyJoinServiceClient) error {
		resp, err = c.Join(ctx, &pb.JoinRequest{Secret: token.Secret[:], CertificateRequest: csr, Name: f.name})
		return err
	})
	if err != nil {
		return "", err
	}
	project, gateway, name, err := pki.ParseProxyID(resp.GetIdentity())
	if err != nil {
		return "", fmt.Errorf("the control plane's answer: %w", err)
	}
	if block, _ := pem.Decode(resp.GetCa()); block == nil || sha256.Sum256(block.Bytes) != token.CA {
		return "", errors.New("the control plane's answer holds another certificate authority than the token")
	}
	if err := writeIdentity(f.dir, resp.GetIdentity(), resp.GetCertificate(), key, resp.GetCa()); err != nil {
		return "", err
	}
	if f.grpc {
		err = bootstrap.WriteGRPC(filepath.Join(f.dir, proxyGRPC), f.bootstrap(project, gateway, name))
	} else {
		err = bootstrap.WriteFiles(filepath.Join(f.dir, proxyEnvoy), f.bootstrap(project, gateway, name))
	}
	if err != nil {
		return "", err
	}
	state, err := json.Marshal(joinState{
		Control: f.control, Identity: resp.GetIdentity(),
		XDS: f.xds, AdminSocket: f.adminSocket, Region: f.region, Zone: f.zone, MaxHeapBytes: f.maxHeap,
	})
	if err != nil {
		return "", err
	}
	return resp.GetIdentity(), os.WriteFile(filepath.Join(f.dir, proxyState), append(state, '\n'), 0o600)
}

// writeIdentity checks what the control plane gave and puts it in place.
func writeIdentity(dir, identity string, cert, key, ca []byte) error {
	leaf, err := pki.ParsePair(cert, key, ca, time.Now())
	if err != nil {
		return fmt.Errorf("the certificate that the control plane gave is not usable (are both clocks right?): %w", err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity {
		return fmt.Errorf("the certificate that the control plane gave is for %v, not %s", leaf.URIs, identity)
	}
	return pki.ReplaceSet(dir, map[string][]byte{proxyCert: cert, proxyKey: key, proxyCA: ca})
}

// callJoin makes a call to the control plane, and again when it was not there for
// a moment. A repeated Join with the same key is the same join.
func callJoin(ctx context.Context, address string, tlsConfig *tls.Config, call func(context.Context, pb.ProxyJoinServiceClient) error) error {
	// gRPC makes a text of what the handshake finds; keep the error itself.
	var refused atomic.Pointer[error]
	verify := tlsConfig.VerifyConnection
	tlsConfig.VerifyConnection = func(s tls.ConnectionState) error {
		err := verify(s)
		if err != nil {
			refused.Store(&err)
		}
		return err
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		return fmt.Errorf("--control %q: %w", address, err)
	}
	defer conn.Close()
	client := pb.NewProxyJoinServiceClient(conn)
	for try := 1; ; try++ {
		callCtx, cancel := context.WithTimeout(ctx, joinCallTimeout)
		err := call(callCtx, client)
		cancel()
		if err == nil {
			return nil
		}
		if why := refused.Load(); why != nil {
			return fmt.Errorf("%s is not trusted: %w", address, *why)
		}
		if code := status.Code(err); try == joinTries || code != codes.Unavailable && code != codes.DeadlineExceeded {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(joinRetryAfter):
		}
	}
}

// renewProxy replaces the certificate in dir, and tells until when it is good.
func renewProxy(ctx context.Context, dir, control string) (until time.Time, err error) {
	state, err := readJoinState(dir)
	if err != nil {
		return until, err
	}
	if control == "" {
		control = state.Control
	}
	cert := filepath.Join(dir, proxyCert)
	old, err := pki.ReadCertificate(cert)
	if err != nil {
		return until, fmt.Errorf("--dir: %w", err)
	}
	if time.Now().After(old.NotAfter) {
		return until, fmt.Errorf("the certificate in %s expired on %s: make a new token with `penstock proxy token` and join again with --replace", dir, old.NotAfter.Local().Format(time.DateTime))
	}
	tlsConfig, err := pki.ProxyTLS(cert, filepath.Join(dir, proxyKey), filepath.Join(dir, proxyCA), bootstrap.ControlSPIFFE)
	if err != nil {
		return until, fmt.Errorf("--dir: %w", err)
	}
	csr, key, err := pki.NewRequest(state.Identity)
	if err != nil {
		return until, err
	}
	var resp *pb.RenewResponse
	err = callJoin(ctx, control, tlsConfig, func(ctx context.Context, c pb.ProxyJoinServiceClient) error {
		resp, err = c.Renew(ctx, &pb.RenewRequest{CertificateRequest: csr})
		return err
	})
	if err != nil {
		return until, err
	}
	if err := writeIdentity(dir, state.Identity, resp.GetCertificate(), key, resp.GetCa()); err != nil {
		return until, err
	}
	leaf, err := pki.ReadCertificate(cert)
	if err != nil {
		return until, err
	}
	return leaf.NotAfter, nil
}

func readJoinState(dir string) (joinState, error) {
	var s joinState
	file := filepath.Join(dir, proxyState)
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s, fmt.Errorf("--dir %s: no proxy joined there (there is no %s): see `penstock proxy join`", dir, proxyState)
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil {
		_, _, _, err = pki.ParseProxyID(s.Identity)
	}
	if err != nil {
		return s, fmt.Errorf("--dir: %s: %w", file, err)
	}
	return s, nil
}

// keepProxyFresh renews at six tenths of the life, until ctx ends. A failure is
// logged and tried again: the certificate is good for a while yet, and what was
// revoked may be allowed again.
func keepProxyFresh(ctx context.Context, log *slog.Logger, dir, control string) error {
	if _, err := readJoinState(dir); err != nil {
		return err
	}
	for {
		cert, err := pki.ReadCertificate(filepath.Join(dir, proxyCert))
		if err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
		life := cert.NotAfter.Sub(cert.NotBefore)
		// Up to a twentieth later, so that proxies that joined together do not come
		// together; still before two thirds.
		spread := time.Duration(rand.Int64N(int64(life/20) + 1))
		wait := time.Until(cert.NotBefore.Add(life/10*6 + spread))
		for {
			timer := time.NewTimer(max(0, wait))
			select {
			case <-ctx.Done():
				timer.Stop()
				return nil
			case <-timer.C:
			}
			until, err := renewProxy(ctx, dir, control)
			if err == nil {
				log.Info("renewed the certificate", "until", until)
				break
			}
			if ctx.Err() != nil {
				return nil
			}
			wait = min(time.Minute, max(time.Second, life/50))
			log.Error("cannot renew the certificate; will try again", "until", cert.NotAfter, "after", wait, "error", describeError(err))
		}
	}
}
