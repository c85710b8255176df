package shadow

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/penstock-gateway/penstock/xds"
)

// fakes makes of resources what the shadow gets. Keys are made once for each kind.
type fakes struct {
	keys map[string]crypto.Signer
}

func newFakes() *fakes { return &fakes{keys: map[string]crypto.Signer{}} }

// resource is what the shadow gets in the place of r, with its version; nil of nil.
// What cannot be read goes as it is, to be refused, unless it may hold a key.
func (f *fakes) resource(r *xds.Resource) *xds.Resource {
	if r == nil {
		return nil
	}
	var err error
	var m proto.Message
	switch r.Type {
	case xds.Listener:
		m, err = fakeListener(r.Body)
	case xds.Cluster:
		m, err = fakeCluster(r.Body)
	case xds.Endpoint:
		m, err = fakeEndpoints(r.Body)
	case xds.Secret:
		m, err = f.secret(r)
	default:
		return r
	}
	if err != nil && r.Type == xds.Secret {
		// Never the real one: an empty secret is refused, and says so.
		m, err = &tlsv3.Secret{Name: r.Name}, nil
	}
	var b []byte
	if err == nil {
		b, err = proto.MarshalOptions{Deterministic: true}.Marshal(m)
	}
	if err != nil {
		return r
	}
	out := *r
	out.Body = &anypb.Any{TypeUrl: string(r.Type), Value: b}
	return &out
}

// fakeListener does not bind: the ports of this host are not the gateway's.
func fakeListener(body *anypb.Any) (proto.Message, error) {
	l := &listenerv3.Listener{}
	if err := body.UnmarshalTo(l); err != nil {
		return nil, err
	}
	l.BindToPort = wrapperspb.Bool(false)
	return l, nil
}

// fakeCluster leads nowhere, and asks nobody whether it does.
func fakeCluster(body *anypb.Any) (proto.Message, error) {
	c := &clusterv3.Cluster{}
	if err := body.UnmarshalTo(c); err != nil {
		return nil, err
	}
	c.HealthChecks, c.PreconnectPolicy = nil, nil
	nowhere(c.GetLoadAssignment(), dns(c))
	return c, nil
}

// dns reports whether the addresses of a cluster may be names.
func dns(c *clusterv3.Cluster) bool {
	return c.GetType() == clusterv3.Cluster_STRICT_DNS || c.GetType() == clusterv3.Cluster_LOGICAL_DNS
}

func fakeEndpoints(body *anypb.Any) (proto.Message, error) {
	a := &endpointv3.ClusterLoadAssignment{}
	if err := body.UnmarshalTo(a); err != nil {
		return nil, err
	}
	nowhere(a, false)
	return a, nil
}

// nowhere makes loopback addresses of endpoints. What is not an address stays, for
// Envoy to refuse it, unless names are allowed: those would be looked up.
func nowhere(a *endpointv3.ClusterLoadAssignment, names bool) {
	for _, l := range a.GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			if p := e.GetEndpoint().GetAddress().GetPipe(); p != nil {
				p.Path = "/dev/null/nowhere"
			}
			s := e.GetEndpoint().GetAddress().GetSocketAddress()
			if s == nil {
				continue
			}
			ip, err := netip.ParseAddr(s.GetAddress())
			switch {
			case err == nil && ip.Is6() && !ip.Is4In6():
				s.Address = "::1"
			case err == nil || names:
				s.Address = "127.0.0.1"
			}
			if hc := e.GetEndpoint().GetHealthCheckConfig(); hc != nil {
				e.GetEndpoint().HealthCheckConfig = nil
			}
			e.GetEndpoint().AdditionalAddresses = nil
		}
	}
}

// secret replaces private key and leaf by throw-away ones of the same kind.
func (f *fakes) secret(r *xds.Resource) (proto.Message, error) {
	s := &tlsv3.Secret{}
	if err := r.Body.UnmarshalTo(s); err != nil {
		return nil, err
	}
	c := s.GetTlsCertificate()
	if c == nil {
		if s.GetValidationContext() != nil {
			return s, nil // public
		}
		return nil, errors.New("it is not a certificate")
	}
	chain, key := data(c.GetCertificateChain()), data(c.GetPrivateKey())
	block, rest := pem.Decode(chain)
	if block == nil {
		return nil, errors.New("the chain is not PEM")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := matches(leaf, key); err != nil {
		return nil, err
	}
	fake, err := f.key(leaf.PublicKey)
	if err != nil {
		return nil, err
	}
	template := *leaf
	template.SignatureAlgorithm, template.PublicKeyAlgorithm, template.PublicKey = 0, 0, nil
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, fake.Public(), fake)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(fake)
	if err != nil {
		return nil, err
	}
	out := proto.CloneOf(s)
	t := out.GetTlsCertificate()
	t.CertificateChain = inline(append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), rest...))
	t.PrivateKey, t.Password, t.OcspStaple, t.Pkcs12, t.PrivateKeyProvider = inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})), nil, nil, nil, nil
	return out, nil
}

func data(d *corev3.DataSource) []byte {
	if s := d.GetInlineString(); s != "" {
		return []byte(s)
	}
	return d.GetInlineBytes()
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: string(b)}}
}

// matches does what the shadow cannot any more: it checks that key and leaf belong
// together.
func matches(leaf *x509.Certificate, key []byte) error {
	for len(bytes.TrimSpace(key)) > 0 {
		block, rest := pem.Decode(key)
		if block == nil {
			break
		}
		key = rest
		var parsed any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			parsed, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return err
		}
		signer, ok := parsed.(crypto.Signer)
		if !ok {
			return fmt.Errorf("a key of type %T cannot sign", parsed)
		}
		if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(leaf.PublicKey) {
			return errors.New("key and certificate do not belong together")
		}
		return nil
	}
	return errors.New("there is no private key")
}

// key is a throw-away key of the same kind and size.
func (f *fakes) key(public crypto.PublicKey) (crypto.Signer, error) {
	var id string
	var generate func() (crypto.Signer, error)
	switch k := public.(type) {
	case *rsa.PublicKey:
		id = fmt.Sprint("rsa", k.N.BitLen())
		generate = func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, k.N.BitLen()) }
	case *ecdsa.PublicKey:
		id = k.Curve.Params().Name
		generate = func() (crypto.Signer, error) { return ecdsa.GenerateKey(k.Curve, rand.Reader) }
	default:
		id = "other"
		generate = func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }
	}
	if old := f.keys[id]; old != nil {
		return old, nil
	}
	key, err := generate()
	if err == nil {
		f.keys[id] = key
	}
	return key, err
}
