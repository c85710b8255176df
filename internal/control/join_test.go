package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pki"
)

const controlID = "spiffe://" + pki.TrustDomain + "/control"

// dialXDS connects to the xDS port.
func dialXDS(t *testing.T, p *plane, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.addr.XDS.String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestTokenForGatewayOfIstio: gateways that are read from Istio have a dot in their names.
func TestTokenForGatewayOfIstio(t *testing.T) {
	p := start(t, t.TempDir())
	gw := &pb.Gateway{Name: "projects/default/gateways/shop.gw", Listeners: []*pb.Listener{{Name: "http", Port: 8081, Protocol: pb.ListenerProtocol_LISTENER_PROTOCOL_HTTP}}}
	if err := apply(t, p.conn, &pb.Resource{Kind: &pb.Resource_Gateway{Gateway: gw}}); err != nil {
		t.Fatal(err)
	}
	_, err := pb.NewProxyAdmissionServiceClient(p.conn).CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Gateway: "shop.gw", Name: "gw-1"})
	if err != nil {
		t.Error(err)
	}
}

// newToken asks for a token of the proxy default/-/name.
func newToken(t *testing.T, p *plane, name string, ttl time.Duration) pki.JoinToken {
	t.Helper()
	resp, err := pb.NewProxyAdmissionServiceClient(p.conn).CreateJoinToken(t.Context(), &pb.CreateJoinTokenRequest{Gateway: "-", Name: name, Ttl: durationpb.New(ttl)})
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseJoinToken(resp.GetToken())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func newCSR(t *testing.T, spiffe string) (csr, key []byte) {
	t.Helper()
	csr, key, err := pki.NewRequest(spiffe)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

// joined is a proxy that joined: the files of its identity.
func joined(t *testing.T, p *plane, name string) (conn *grpc.ClientConn, cert *x509.Certificate) {
	t.Helper()
	token := newToken(t, p, name, time.Minute)
	csr, key := newCSR(t, "")
	resp, err := pb.NewProxyJoinServiceClient(dialXDS(t, p, pki.JoinTLS(token, controlID))).Join(t.Context(), &pb.JoinRequest{Secret: token.Secret[:], CertificateRequest: csr})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := pki.ParsePair(resp.GetCertificate(), key, resp.GetCa(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if want := pki.ProxyID("default", "-", name); resp.GetIdentity() != want || len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		t.Fatalf("joined as %s with a certificate of %v, want %s", resp.GetIdentity(), leaf.URIs, want)
	}
	if life := leaf.NotAfter.Sub(leaf.NotBefore); life < 29*24*time.Hour || life > 31*24*time.Hour {
		t.Errorf("life of the certificate: %s, want 30 days", life)
	}
	return dialPair(t, p, resp.GetCertificate(), key, resp.GetCa()), leaf
}

func dialPair(t *testing.T, p *plane, cert, key, ca []byte) *grpc.ClientConn {
	t.Helper()
	dir := t.TempDir()
	if err := pki.ReplaceSet(dir, map[string][]byte{"p.crt": cert, "p.key": key, "ca.crt": ca}); err != nil {
		t.Fatal(err)
	}
	config, err := pki.ProxyTLS(filepath.Join(dir, "p.crt"), filepath.Join(dir, "p.key"), filepath.Join(dir, "ca.crt"), controlID)
	if err != nil {
		t.Fatal(err)
	}
	return dialXDS(t, p, config)
}

// ads opens a stream and returns its first answer.
func ads(t *testing.T, conn *grpc.ClientConn) (discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, error) {
	t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	if err != nil {
		return nil, err
	}
	// An error here comes again, with its reason, from Recv.
	_ = s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster"})
	_, err = s.Recv()
	return s, err
}

// TestGuardAllMethods: of all methods that the xDS port has, whoever registered
// them, only Join answers a client without a certificate. A client with one of
// another authority does not get that far.
func TestGuardAllMethods(t *testing.T) {
	p := start(t, t.TempDir())
	server := p.core.xdsServer(ServeOptions{TLS: &tls.Config{}, Logger: p.core.log})
	token := newToken(t, p, "a", time.Minute)
	conn := dialXDS(t, p, pki.JoinTLS(token, controlID))
	methods := 0
	for service, info := range server.GetServiceInfo() {
		for _, m := range info.Methods {
			methods++
			name := "/" + service + "/" + m.Name
			s, err := conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, name)
			if err != nil {
				t.Fatal(err)
			}
			_ = s.SendMsg(&pb.JoinRequest{})
			_ = s.CloseSend()
			err = s.RecvMsg(&pb.JoinResponse{})
			if name == pb.ProxyJoinService_Join_FullMethodName {
				wantCode(t, name, err, codes.InvalidArgument, "secret")
				continue
			}
			// The words are the guard's own: it is in the way, not only the handler.
			wantCode(t, name, err, codes.Unauthenticated, name+" needs a client certificate")
		}
	}
	if methods < 5 {
		t.Errorf("looked at %d methods only", methods)
	}
	other, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := other.Issue(pki.Request{SPIFFE: pki.ProxyID("default", "-", "a")})
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	config := pki.JoinTLS(token, controlID)
	config.Certificates = []tls.Certificate{pair}
	foreign := dialXDS(t, p, config)
	if _, err := ads(t, foreign); status.Code(err) != codes.Unavailable {
		t.Errorf("a certificate of another authority: %v, want a failed handshake", err)
	}
}

// TestRevoke: what one replica revokes ends the streams at the other; the others
// stay; allow undoes it.
func TestRevoke(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	q := serve(t, p.core.store, dir)
	conn, _ := joined(t, q, "bad")
	good, _ := joined(t, q, "good")
	bad, err := ads(t, conn)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := ads(t, good)
	if err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	author := "local:" + me.Username
	admin := pb.NewProxyAdmissionServiceClient(p.conn)
	// What a client calls itself is not believed.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-penstock-caller", "ann")
	id := pki.ProxyID("default", "-", "bad")
	if _, err := admin.RevokeProxy(ctx, &pb.RevokeProxyRequest{Reason: "stolen", Subject: &pb.RevokeProxyRequest_Identity{Identity: id}}); err != nil {
		t.Fatal(err)
	}
	_, err = bad.Recv()
	wantCode(t, "the open stream", err, codes.PermissionDenied, "revoked")
	_, err = ads(t, conn)
	wantCode(t, "a new stream", err, codes.PermissionDenied, "revoked")
	csr, _ := newCSR(t, "")
	_, err = pb.NewProxyJoinServiceClient(conn).Renew(t.Context(), &pb.RenewRequest{CertificateRequest: csr})
	wantCode(t, "a renewal", err, codes.PermissionDenied, "revoked")
	_, err = admin.CreateJoinToken(ctx, &pb.CreateJoinTokenRequest{Gateway: "-", Name: "bad"})
	wantCode(t, "a new token", err, codes.PermissionDenied, "revoked")
	list, err := admin.ListRevocations(ctx, &pb.ListRevocationsRequest{})
	if r := list.GetRevocations(); err != nil || len(r) != 1 || r[0].GetIdentity() != id || r[0].GetAuthor() != author || r[0].GetReason() != "stolen" {
		t.Errorf("list: %v %v", list, err)
	}

	// The other stream goes on: it still gets an answer.
	if err := kept.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/envoy.config.listener.v3.Listener"}); err != nil {
		t.Error(err)
	}
	if _, err := kept.Recv(); err != nil {
		t.Errorf("the stream of another proxy: %v", err)
	}

	checkAllow(t, p, q, conn, id)
}

// checkAllow is the way back of TestRevoke.
func checkAllow(t *testing.T, p, q *plane, conn *grpc.ClientConn, id string) {
	t.Helper()
	ctx := t.Context()
	admin := pb.NewProxyAdmissionServiceClient(p.conn)
	allow := &pb.AllowProxyRequest{Subject: &pb.AllowProxyRequest_Identity{Identity: id}}
	// A replica that starts later knows it, too.
	r := serve(t, p.core.store, t.TempDir())
	if got := r.core.admission.Revocations(); len(got) != 1 {
		t.Errorf("a replica that starts knows of %d revocations", len(got))
	}

	allowed, err := admin.AllowProxy(ctx, allow)
	if err != nil || !allowed.GetWasRevoked() {
		t.Errorf("allow: %v %v", allowed, err)
	}
	until(t, "the other replica to let it in again", func() bool {
		_, err := ads(t, conn)
		return err == nil
	})
	again, err := admin.AllowProxy(ctx, allow)
	if err != nil || again.GetWasRevoked() {
		t.Errorf("allow again: %v %v", again, err)
	}
}

// TestRevokeSerial: one certificate is refused, the next one of the same proxy is
// good.
func TestRevokeSerial(t *testing.T) {
	p := start(t, t.TempDir())
	conn, cert := joined(t, p, "a")
	admin := pb.NewProxyAdmissionServiceClient(p.conn)
	renewed, key := newCSR(t, "")
	next, err := pb.NewProxyJoinServiceClient(conn).Renew(t.Context(), &pb.RenewRequest{CertificateRequest: renewed})
	if err != nil {
		t.Fatal(err)
	}
	serial := strings.ToUpper(pki.Serial(cert))
	if _, err := admin.RevokeProxy(t.Context(), &pb.RevokeProxyRequest{Subject: &pb.RevokeProxyRequest_Serial{Serial: serial}}); err != nil {
		t.Fatal(err)
	}
	_, err = ads(t, conn)
	wantCode(t, "the certificate", err, codes.PermissionDenied, "revoked")
	// The connection is closed, too, though it has no stream.
	until(t, "the connection to be closed", func() bool { return conn.GetState() != connectivity.Ready })
	if _, err := ads(t, dialPair(t, p, next.GetCertificate(), key, next.GetCa())); err != nil {
		t.Errorf("the next certificate: %v", err)
	}
}

// TestRenewIdentity: a renewal gives the identity of the certificate, and nothing
// else.
func TestRenewIdentity(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	conn, _ := joined(t, p, "a")
	c := pb.NewProxyJoinServiceClient(conn)
	csr, _ := newCSR(t, pki.ProxyID("default", "-", "b"))
	_, err := c.Renew(t.Context(), &pb.RenewRequest{CertificateRequest: csr})
	wantCode(t, "another identity", err, codes.InvalidArgument, "it asks for")
	_, err = c.Renew(t.Context(), &pb.RenewRequest{})
	wantCode(t, "nothing", err, codes.InvalidArgument, "certificate_request")

	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	cert, key, err := ca.Issue(pki.Request{SPIFFE: "spiffe://" + pki.TrustDomain + "/runner/a"})
	if err != nil {
		t.Fatal(err)
	}
	runner := dialPair(t, p, cert, key, ca.CertPEM())
	csr, _ = newCSR(t, "")
	_, err = pb.NewProxyJoinServiceClient(runner).Renew(t.Context(), &pb.RenewRequest{CertificateRequest: csr})
	wantCode(t, "a runner", err, codes.PermissionDenied, "not the id of a proxy")
}

// TestJoinSlots: callers that open a join and say nothing do not take all memory,
// and hold nobody up for long.
func TestJoinSlots(t *testing.T) {
	p := start(t, t.TempDir())
	token := newToken(t, p, "a", time.Minute)
	conn := dialXDS(t, p, pki.JoinTLS(token, controlID))
	var cancels []context.CancelFunc
	busy := func() bool { // as a join says that can end in nothing else
		_, err := pb.NewProxyJoinServiceClient(conn).Join(t.Context(), &pb.JoinRequest{})
		return status.Code(err) == codes.Unavailable
	}
	for range 4 { // as many as may join at one time
		ctx, cancel := context.WithCancel(t.Context())
		cancels = append(cancels, cancel)
		s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true}, pb.ProxyJoinService_Join_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		_ = s
	}
	until(t, "all slots to be taken", busy)
	csr, _ := newCSR(t, "")
	join := func() error {
		_, err := pb.NewProxyJoinServiceClient(conn).Join(t.Context(), &pb.JoinRequest{Secret: token.Secret[:], CertificateRequest: csr})
		return err
	}
	wantCode(t, "one too many", join(), codes.Unavailable, "try again")
	for _, c := range cancels {
		c()
	}
	until(t, "a slot to be free", func() bool { return !busy() })
	if err := join(); err != nil {
		t.Error(err)
	}
}

// TestDamagedRevocation: what cannot be read stays in force.
func TestDamagedRevocation(t *testing.T) {
	dir := t.TempDir()
	p := start(t, dir)
	conn, _ := joined(t, p, "a")
	key := "revoked/identity/" + pki.ProxyID("default", "-", "a")
	if err := p.core.store.PutState(t.Context(), key, []byte("\xff\xff")); err != nil {
		t.Fatal(err)
	}
	until(t, "the proxy to be refused", func() bool {
		_, err := ads(t, conn)
		return status.Code(err) == codes.PermissionDenied
	})
}
