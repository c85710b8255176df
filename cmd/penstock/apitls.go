package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/penstock-gateway/penstock/internal/keyfile"
	"github.com/penstock-gateway/penstock/internal/pki"
)

// apiTLSFlags say how the configuration API is served to other machines.
type apiTLSFlags struct {
	always    bool
	hosts     []string
	cert, key string
}

func (f *apiTLSFlags) add(fl *pflag.FlagSet) {
	fl.BoolVar(&f.always, "api-tls", false, "TLS for --api-listen and --http-listen on loopback, too")
	fl.StringSliceVar(&f.hosts, "api-host", nil, "names or addresses that clients reach the API by, for its certificate (repeatable; default: those of this machine)")
	fl.StringVar(&f.cert, "api-cert", "", "certificate of the API (default: one of the installation's own authority)")
	fl.StringVar(&f.key, "api-key", "", "key of --api-cert")
}

// args are the flags as a child gets them.
func (f *apiTLSFlags) args() []string {
	out := []string{fmt.Sprintf("--api-tls=%t", f.always), "--api-cert=" + f.cert, "--api-key=" + f.key}
	for _, h := range f.hosts {
		out = append(out, "--api-host="+h)
	}
	return out
}

// check returns every problem of the flags.
func (f *apiTLSFlags) check() error {
	var errs []error
	for _, h := range f.hosts {
		if net.ParseIP(h) == nil && (h == "" || strings.ContainsAny(h, ":/ []")) {
			errs = append(errs, fmt.Errorf("--api-host %q is not a host name or an IP address (without a port)", h))
		}
	}
	switch {
	case (f.cert == "") != (f.key == ""):
		errs = append(errs, errors.New("--api-cert and --api-key go together"))
	case f.cert != "":
		if err := keyfile.Check(f.key); err != nil {
			errs = append(errs, fmt.Errorf("--api-key: %w", err))
		} else if _, err := tls.LoadX509KeyPair(f.cert, f.key); err != nil {
			errs = append(errs, fmt.Errorf("--api-cert, --api-key: %w", err))
		}
	}
	return errors.Join(errs...)
}

// secure reports whether the API is served with TLS on these addresses.
func (f *apiTLSFlags) secure(addresses ...string) bool {
	for _, a := range addresses {
		if beyondLoopback(a) {
			return true
		}
	}
	return f.always || f.cert != ""
}

// host is a name by which another machine reaches an address, for people to type.
func (f *apiTLSFlags) host(address string) string {
	host, _, err := net.SplitHostPort(address)
	if len(f.hosts) > 0 {
		return f.hosts[0]
	}
	if ip := net.ParseIP(host); err == nil && (ip == nil || !ip.IsUnspecified()) {
		return host
	}
	if names := machineNames(); len(names) > 0 {
		return names[0]
	}
	return "HOST"
}

// beyondLoopback reports whether others than this machine can reach an address.
func beyondLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return host != "localhost" && (err != nil || !ip.IsLoopback())
}

// server is the TLS of the configuration API; nil when it is on loopback only and
// nobody asked for TLS. hosts are the names in its certificate.
func (f *apiTLSFlags) server(ctx context.Context, ca *pki.CA, pkiDir string, log *slog.Logger, addresses ...string) (config *tls.Config, hosts []string, err error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	if !f.secure(addresses...) {
		return nil, nil, nil
	}
	cert, key := f.cert, f.key
	if cert == "" {
		r := pki.Request{SPIFFE: pki.ControlID, DNS: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}}
		names := f.hosts
		if len(names) == 0 && anyAddress(addresses) {
			names = machineNames()
		}
		addNames(&r, names, addresses...)
		if cert, key, err = ca.EnsureFiles(pkiDir, "api", r); err != nil {
			return nil, nil, err
		}
		go ca.KeepFresh(ctx, log, pkiDir, "api", r)
	}
	if config, err = pki.APIServerTLS(cert, key, ca.CertFile()); err != nil {
		return nil, nil, fmt.Errorf("TLS of the configuration API: %w", err)
	}
	leaf, err := pki.ReadCertificate(cert)
	if err != nil {
		return nil, nil, err
	}
	return config, append(leaf.DNSNames, f.hosts...), nil
}

// anyAddress reports whether one of the addresses is all of the machine.
func anyAddress(addresses []string) bool {
	for _, a := range addresses {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
			return true
		}
	}
	return false
}

// machineNames are the addresses of this machine that others may reach it by, and its
// name.
func machineNames() []string {
	var out []string
	all, _ := net.InterfaceAddrs()
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			out = append(out, n.IP.String())
		}
	}
	if name, err := os.Hostname(); err == nil && name != "" && !strings.ContainsAny(name, ":/ []") {
		out = append(out, name)
	}
	return out
}

// addNames puts names and the hosts of addresses into a certificate.
func addNames(r *pki.Request, names []string, addresses ...string) {
	for _, a := range addresses {
		if host, _, err := net.SplitHostPort(a); err == nil {
			names = append(names, host)
		}
	}
	seen := map[string]bool{"localhost": true, "127.0.0.1": true, "::1": true, "": true}
	for _, h := range names {
		if seen[h] {
			continue
		}
		seen[h] = true
		if ip := net.ParseIP(h); ip == nil {
			r.DNS = append(r.DNS, h)
		} else if !ip.IsUnspecified() {
			r.IPs = append(r.IPs, ip)
		}
	}
}
