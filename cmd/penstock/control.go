package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/gateway/policies"
	"github.com/penstock-gateway/penstock/internal/access/connect"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/internal/devissuer"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/internal/socket"
	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/telemetry"
	"github.com/penstock-gateway/penstock/xds/compile"
	"github.com/penstock-gateway/penstock/xds/delivery"
)

// controlFlags are the flags of `penstock control`.
type controlFlags struct {
	dataDir, pkiDir           string
	replaceCA                 string
	api, http, xds            string
	xdsHosts                  []string
	limiters                  []string
	otlp, tracesFrom          string
	etcd                      []string
	etcdCA, etcdCert, etcdKey string
	etcdPrefix, sealKey       string
	logLevel                  string
	proxyCertLife             time.Duration
	packagesDir               string
	eagerHosts                int
	shadow                    shadowFlags
	apiTLS                    apiTLSFlags
	oidc                      oidcFlags
	devIssuer                 bool
}

func newControlCommand() *cobra.Command {
	var f controlFlags
	c := &cobra.Command{
		Use:   "control",
		Short: "Run the control plane",
		Long: "Runs one replica of the control plane: the configuration API, the store (embedded etcd, or\n" +
			"an external one with --etcd-endpoints) and the xDS server for proxies and runners.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runControl(cmd.Context(), f) },
	}
	fl := c.Flags()
	f.addStoreFlags(fl)
	fl.StringVar(&f.replaceCA, "replace-ca", "", "give up the certificate authority of this SHA-256, as the error names it, for the one in --pki-dir, which is made when it is not there; all proxies and runners must join again")
	fl.StringVar(&f.api, "api-listen", connect.DefaultAddress, "configuration API over gRPC; with TLS beyond loopback")
	fl.StringVar(&f.http, "http-listen", "127.0.0.1:7480", "REST, health, metrics, debug; with TLS beyond loopback")
	f.apiTLS.add(fl)
	f.oidc.add(fl)
	fl.BoolVar(&f.devIssuer, "dev-issuer", false, "sign tokens for trying out routes (penstock token), for whoever may \"mint dev-tokens\"; not for production")
	fl.StringVar(&f.xds, "xds-listen", "127.0.0.1:7401", "xDS and runners, mutually authenticated by TLS")
	fl.StringSliceVar(&f.xdsHosts, "xds-host", nil, "names or addresses that proxies reach this replica by, for its certificate")
	fl.StringSliceVar(&f.limiters, "limiter", nil, "IP:port or unix:/PATH of a limiter (repeatable)")
	fl.StringVar(&f.otlp, "otlp", "", "IP:port or unix:/PATH that traces go to (OTLP over gRPC), ours and those of proxies")
	fl.StringVar(&f.tracesFrom, "traces-from", "", "query API of the Jaeger that has the traces, unix:/PATH or http://HOST:PORT, for whoever may \"read traces\" (penstock trace)")
	fl.DurationVar(&f.proxyCertLife, "proxy-cert-life", 30*24*time.Hour, "life of the certificates that proxies get when they join or renew, 1m to 2160h")
	fl.StringVar(&f.packagesDir, "packages-dir", "", "folder of uploaded code of functions, to be shared by all replicas (default DATA-DIR/packages)")
	fl.IntVar(&f.eagerHosts, "eager-hosts", compile.DefaultEagerHosts, "how many hosts of a listener proxies load at their start; of more, each is loaded at its first request where that is safe")
	f.shadow.add(fl)
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	return c
}

// addStoreFlags adds the flags that say where the store and the keys are.
func (f *controlFlags) addStoreFlags(fl *pflag.FlagSet) {
	fl.StringVar(&f.dataDir, "data-dir", "./.penstock", "folder of the embedded store and keys")
	fl.StringVar(&f.pkiDir, "pki-dir", "", "folder of the certificate authority (default DATA-DIR/pki)")
	fl.StringSliceVar(&f.etcd, "etcd-endpoints", nil, "external etcd; empty: embedded")
	fl.StringVar(&f.etcdCA, "etcd-cacert", "", "CA of the external etcd")
	fl.StringVar(&f.etcdCert, "etcd-cert", "", "client certificate for it")
	fl.StringVar(&f.etcdKey, "etcd-key", "", "key of that certificate")
	fl.StringVar(&f.etcdPrefix, "etcd-prefix", "/penstock", "prefix of all keys in etcd")
	fl.StringVar(&f.sealKey, "seal-key-file", "", "file of the key that seals secrets (default DATA-DIR/seal.key)")
}

// fillDefaults fills the places that follow from the data folder.
func (f *controlFlags) fillDefaults() {
	f.pkiDir = cmp.Or(f.pkiDir, filepath.Join(f.dataDir, "pki"))
	f.sealKey = cmp.Or(f.sealKey, filepath.Join(f.dataDir, "seal.key"))
	f.packagesDir = cmp.Or(f.packagesDir, filepath.Join(f.dataDir, "packages"))
}

func runControl(ctx context.Context, f controlFlags) error {
	log := telemetry.NewLogger(os.Stderr, f.logLevel, "control")
	f.fillDefaults()
	settings, err := f.settings()
	if err != nil {
		return err
	}
	if f.proxyCertLife < time.Minute || f.proxyCertLife > 90*24*time.Hour {
		return fmt.Errorf("--proxy-cert-life %s: it must be from 1m to 2160h (90 days)", f.proxyCertLife)
	}
	issuer, err := f.oidc.verifier(log)
	if err != nil {
		return err
	}
	shadow, err := f.shadow.options(ctx)
	if err != nil {
		return err
	}
	tel, err := telemetry.Setup(ctx, telemetry.Config{Service: "penstock-control", Version: version(), OTLP: f.otlp, Logger: log})
	if err != nil {
		return err
	}
	defer shutdown(tel, log)

	st, err := f.openStore(ctx, log)
	if err != nil {
		return err
	}
	defer st.Close()
	ca, err := openAuthority(ctx, st, f.pkiDir, f.replaceCA, log)
	if err != nil {
		return err
	}
	tlsConfig, err := f.serverTLS(ctx, ca, log)
	if err != nil {
		return err
	}
	apiTLS, apiHosts, err := f.apiTLS.server(ctx, ca, f.pkiDir, log, f.api, f.http)
	if err != nil {
		return err
	}
	core, err := control.New(ctx, control.Options{
		Store: st, Settings: settings, Logger: log, Version: version(), Authenticate: authenticateProxy,
		CA: ca, ProxyCertLife: f.proxyCertLife, PackagesDir: f.packagesDir, Shadow: shadow,
	})
	if err != nil {
		return err
	}
	defer core.Close()
	tel.Registry.MustRegister(core.Collector())
	guard, err := f.openAccess(ctx, st, ca, core, issuer, log)
	if err != nil {
		return err
	}
	defer guard.Close()
	var dev *devissuer.Issuer
	if f.devIssuer {
		if dev, err = devissuer.Open(ctx, st); err != nil {
			return err
		}
	}
	var traces http.Handler
	if f.tracesFrom != "" {
		if traces, err = control.NewTraces(f.tracesFrom); err != nil {
			return fmt.Errorf("--traces-from: %w", err)
		}
	}
	withdraw := func() {}
	defer func() { withdraw() }()
	return core.Serve(ctx, control.ServeOptions{
		Access: guard, API: f.api, HTTP: f.http, APITLS: apiTLS, APIHosts: apiHosts, XDS: f.xds, TLS: tlsConfig, Logger: log,
		Metrics: tel.Handler(), Traces: traces, TracerProvider: tel.TracerProvider, DevIssuer: dev,
		Ready: func(a control.Addresses) {
			withdraw = f.announce(a, apiTLS != nil, log)
			log.Info("control plane is ready", "api", a.API.String(), "http", a.HTTP.String(), "xds", a.XDS.String(), "revision", core.Snapshot().Revision())
		},
	})
}

// shutdown flushes spans; at the end of a process it may not take long.
func shutdown(p *telemetry.Providers, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := p.Shutdown(ctx); err != nil {
		log.Debug("spans were not all sent", "error", err)
	}
}

func (f *controlFlags) openStore(ctx context.Context, log *slog.Logger) (store.Store, error) {
	if err := os.MkdirAll(f.dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir: %w", err)
	}
	o, err := f.storeOptions(log)
	if err != nil {
		return nil, err
	}
	o.SealKeyFile = f.sealKey // which is made in a new store
	return store.Open(ctx, o)
}

// storeOptions are those of the store as it is.
func (f *controlFlags) storeOptions(log *slog.Logger) (store.Options, error) {
	o := store.Options{
		DataDir: filepath.Join(f.dataDir, "etcd"), Endpoints: f.etcd, Prefix: f.etcdPrefix, Logger: log.With("part", "store"),
		Footprint: policies.Model().Footprint,
	}
	if _, err := os.Stat(f.sealKey); err == nil {
		o.SealKeyFile = f.sealKey
	}
	if f.etcdCA != "" || f.etcdCert != "" {
		config, err := clientTLS(f.etcdCA, f.etcdCert, f.etcdKey)
		if err != nil {
			return o, fmt.Errorf("--etcd-cacert, --etcd-cert, --etcd-key: %w", err)
		}
		o.TLS = config
	}
	return o, nil
}

// clientTLS reads the files of a client's side.
func clientTLS(ca, cert, key string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (f *controlFlags) settings() (compile.Settings, error) {
	s := compile.Settings{EagerHosts: f.eagerHosts}
	if f.eagerHosts <= 0 {
		s.EagerHosts = -1
	}
	for _, l := range f.limiters {
		e, err := endpoint(l)
		if err != nil {
			return s, fmt.Errorf("--limiter: %w", err)
		}
		s.Limiters = append(s.Limiters, e)
	}
	if f.otlp != "" {
		e, err := endpoint(f.otlp)
		if err != nil {
			return s, fmt.Errorf("--otlp: %w", err)
		}
		s.OTLP = e
	}
	return s, nil
}

// endpoint reads IP:port or unix:/path.
func endpoint(hostport string) (compile.Endpoint, error) {
	if path, ok := socket.Of(hostport); ok {
		return compile.Endpoint{Address: path}, socket.Check(hostport)
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return compile.Endpoint{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return compile.Endpoint{}, fmt.Errorf("%q has no port between 1 and 65535", hostport)
	}
	if net.ParseIP(host) == nil {
		return compile.Endpoint{}, fmt.Errorf("%q must name an IP address", hostport)
	}
	return compile.Endpoint{Address: host, Port: uint32(n)}, nil
}

// serverTLS issues the server's certificate and keeps it fresh; the server reads
// the files again when they change. It lets in clients without a certificate, for
// the control plane's guard to keep them from all but joining.
func (f *controlFlags) serverTLS(ctx context.Context, ca *pki.CA, log *slog.Logger) (*tls.Config, error) {
	r := pki.Request{
		SPIFFE: pki.ControlID,
		DNS:    []string{"localhost", "penstock-control"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	addNames(&r, f.xdsHosts, f.xds)
	cert, key, err := ca.EnsureFiles(f.pkiDir, "control", r)
	if err != nil {
		return nil, err
	}
	go ca.KeepFresh(ctx, log, f.pkiDir, "control", r)
	return pki.JoinServerTLS(cert, key, ca.CertFile())
}

// authenticateProxy tells who a proxy is by its certificate alone.
func authenticateProxy(ctx context.Context) (delivery.Identity, error) {
	id, err := pki.PeerSPIFFE(ctx)
	if err != nil {
		return delivery.Identity{}, err
	}
	project, gateway, name, err := pki.ParseProxyID(id)
	if err != nil {
		return delivery.Identity{}, err
	}
	v := compile.View{Project: project, Gateway: gateway}
	g := v
	g.GRPC = true
	return delivery.Identity{Proxy: name, SPIFFE: id, View: v.String(), GRPCView: g.String()}, nil
}
