package admission

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/control/kv"
	"github.com/penstock-gateway/penstock/internal/control/service"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// Keys of the store's run-time state.
const (
	// joinPrefix + "token/" + hash of the secret holds a joinToken;
	// joinPrefix + "claim/" + that hash + "/" + hash of a public key holds nothing:
	// somebody used the token for that key.
	joinPrefix    = "join/"
	revokedPrefix = "revoked/"
)

const (
	defaultTokenTTL      = 10 * time.Minute
	defaultProxyCertLife = 30 * 24 * time.Hour
	// tokenKept is how long a token is kept after its end, so that a late user is
	// told that it expired, and clocks of replicas may differ.
	tokenKept = time.Hour
	// maxTokens bounds the tokens that are not yet forgotten.
	maxTokens = 10_000
)

// joinToken is what is stored of a token.
type joinToken struct {
	Identity string    `json:"identity"`
	Expires  time.Time `json:"expires"`
	Author   string    `json:"author"`
}

// joins is the ProxyJoinService; admission is the part of it on the other port.
type joins struct {
	pb.UnimplementedProxyJoinServiceServer
	Params
	guard *guard
	now   func() time.Time
	// loading is held from reading what is revoked until that is in force, so that
	// an older reading never replaces a newer one.
	loading sync.Mutex
}

func newJoins(p Params, g *guard) *joins {
	if p.CertLife == 0 {
		p.CertLife = defaultProxyCertLife
	}
	return &joins{Params: p, guard: g, now: time.Now}
}

// audit logs what was decided about an identity.
func (j *joins) audit(what string, args ...any) { j.Log.Warn("audit: "+what, args...) }

// load takes over what is revoked.
func (j *joins) load(ctx context.Context) error {
	j.loading.Lock()
	defer j.loading.Unlock()
	read, err := j.State.ReadState(ctx, revokedPrefix)
	if err != nil {
		return fmt.Errorf("read what is revoked: %w", err)
	}
	revoked := map[string]*pb.Revocation{}
	// The key alone says who; what cannot be read must not let anybody in.
	damaged := func(key, detail string) {
		subject := strings.TrimPrefix(key, revokedPrefix)
		j.Log.Error("a revocation is damaged; it stays in force", "subject", subject, "error", detail)
		revoked[subject] = &pb.Revocation{Reason: "(the stored revocation is damaged)"}
	}
	for key, value := range read.Values {
		r := &pb.Revocation{}
		if err := proto.Unmarshal(value, r); err != nil {
			damaged(key, err.Error())
			continue
		}
		revoked[strings.TrimPrefix(key, revokedPrefix)] = r
	}
	unknown := ""
	for _, d := range read.Damaged {
		if d.List {
			// Anybody may have been on it.
			unknown = d.Detail
			continue
		}
		damaged(d.Key, d.Detail)
	}
	if unknown != "" {
		j.Log.Error("the list of what is revoked is damaged: no certificate is let in until it is mended (penstock store repair)", "error", unknown)
	}
	j.guard.set(revoked, unknown != "")
	return nil
}

// follow takes over what any replica revokes.
func (j *joins) follow(ctx context.Context) {
	kv.Follow(ctx, j.State, revokedPrefix, j.Log, "what other replicas revoke", j.load)
}

func (j *joins) haveCA() error {
	if j.CA == nil {
		return status.Error(codes.FailedPrecondition, "this control plane has no certificate authority, so no proxy can join here: issue certificates by your own one")
	}
	return nil
}

// checkRevoked refuses identities that are revoked whole.
func (j *joins) checkRevoked(id string) error {
	g := j.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.revoked[identitySubject(id)] != nil {
		return status.Errorf(codes.PermissionDenied, "%s is revoked: `penstock proxy allow` undoes it", id)
	}
	if g.unknown {
		return errUnknown
	}
	return nil
}

// Join implements pb.ProxyJoinServiceServer.
func (j *joins) Join(ctx context.Context, r *pb.JoinRequest) (*pb.JoinResponse, error) {
	if err := j.haveCA(); err != nil {
		return nil, err
	}
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	hash := service.HashHex(r.GetSecret())
	token, err := j.token(ctx, hash)
	if err != nil {
		return nil, err
	}
	// All that can be wrong is looked at before the token counts as used.
	_, _, name, err := pki.ParseProxyID(token.Identity)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if r.GetName() != "" && r.GetName() != name {
		return nil, status.Errorf(codes.PermissionDenied, "the join token is for the proxy %q (%s), not for %q", name, token.Identity, r.GetName())
	}
	key, err := pki.CheckRequest(r.GetCertificateRequest(), token.Identity)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := j.checkRevoked(token.Identity); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := j.claim(ctx, hash, service.HashHex(der)); err != nil {
		if status.Code(err) == codes.Unauthenticated {
			j.audit("refused a join token that was used before", "identity", token.Identity)
		}
		return nil, err
	}
	cert, err := j.issue(r.GetCertificateRequest(), token.Identity, "joined")
	if err != nil {
		return nil, err
	}
	return &pb.JoinResponse{Identity: token.Identity, Certificate: cert, Ca: j.CA.CertPEM()}, nil
}

var errTokenDamaged = status.Error(codes.Internal, "the stored join token is damaged: make another with `penstock proxy token`")

// token finds a token that is in force.
func (j *joins) token(ctx context.Context, hash string) (*joinToken, error) {
	key := joinPrefix + "token/" + hash
	read, err := j.State.ReadKey(ctx, key) // whoever reaches the port may ask this
	if err != nil {
		return nil, service.StoreError(err)
	}
	value, ok := read.Values[key]
	if !ok && len(read.Damaged) > 0 {
		return nil, errTokenDamaged
	}
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "the join token is not known here (or it expired long ago): make one with `penstock proxy token`")
	}
	t := &joinToken{}
	if err := json.Unmarshal(value, t); err != nil {
		return nil, errTokenDamaged
	}
	if !j.now().Before(t.Expires) {
		return nil, status.Errorf(codes.Unauthenticated, "the join token expired at %s: make another with `penstock proxy token`", t.Expires.UTC().Format(time.RFC3339))
	}
	return t, nil
}

// claim uses a token for a key. The same key may claim again: that is a proxy
// that did not get the first answer.
//
// The store's run-time state has no compare-and-swap, and needs none: each user
// writes its claim and then reads all. Writes and reads of etcd are linearizable,
// so of two users on any replicas the one that wrote last sees both claims; at
// most one sees only its own. When both see both, both are refused, which is on
// the safe side. Claims go only after their token has.
func (j *joins) claim(ctx context.Context, hash, key string) error {
	prefix := joinPrefix + "claim/" + hash + "/"
	read, err := j.State.ReadState(ctx, prefix)
	if err != nil {
		return service.StoreError(err)
	}
	if len(read.Damaged) > 0 {
		return errTokenDamaged // it may have been used
	}
	claims := read.Values
	if len(claims) == 0 {
		if err := j.State.PutState(ctx, prefix+key, []byte(j.now().UTC().Format(time.RFC3339))); err != nil {
			return service.StoreError(err)
		}
		if claims, err = j.State.State(ctx, prefix); err != nil {
			return service.StoreError(err)
		}
	}
	if _, mine := claims[prefix+key]; !mine || len(claims) != 1 {
		return status.Error(codes.Unauthenticated, "the join token was used before: each is for one join, make another with `penstock proxy token`"+
			" (and when it was not you who used it, revoke that proxy)")
	}
	return nil
}

// issue signs a request that CheckRequest let pass.
func (j *joins) issue(csr []byte, id, how string) ([]byte, error) {
	cert, err := j.CA.SignRequest(csr, pki.Request{SPIFFE: id, TTL: j.CertLife})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	block, _ := pem.Decode(cert)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	j.Log.Info("audit: issued a certificate", "identity", id, "serial", pki.Serial(leaf), "how", how, "until", leaf.NotAfter)
	return cert, nil
}

// Renew implements pb.ProxyJoinServiceServer. The guard has checked the client
// certificate, that it is not revoked among others.
func (j *joins) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	if err := j.haveCA(); err != nil {
		return nil, err
	}
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	id, err := pki.PeerSPIFFE(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, _, err := pki.ParseProxyID(id); err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	cert, err := j.issue(r.GetCertificateRequest(), id, "renewed")
	if err != nil {
		return nil, err
	}
	return &pb.RenewResponse{Certificate: cert, Ca: j.CA.CertPEM()}, nil
}

// sweep forgets tokens that ended a while ago. First the token goes, then its
// claims, so that a token never looks unused.
func (j *joins) sweep(ctx context.Context) (left int, err error) {
	values, err := j.State.State(ctx, joinPrefix)
	if err != nil {
		return 0, service.StoreError(err)
	}
	for key, value := range values {
		hash, ok := strings.CutPrefix(key, joinPrefix+"token/")
		if !ok {
			continue
		}
		var t joinToken
		if err := json.Unmarshal(value, &t); err == nil && j.now().Before(t.Expires.Add(tokenKept)) {
			left++
			continue
		}
		gone := []string{key}
		for k := range values {
			if strings.HasPrefix(k, joinPrefix+"claim/"+hash+"/") {
				gone = append(gone, k)
			}
		}
		for _, k := range gone {
			if err := j.State.DeleteState(ctx, k); err != nil {
				return left, service.StoreError(err)
			}
		}
	}
	return left, nil
}

// admission is the ProxyAdmissionService.
type admission struct {
	pb.UnimplementedProxyAdmissionServiceServer
	*joins
}

// CreateJoinToken implements pb.ProxyAdmissionServiceServer.
func (a admission) CreateJoinToken(ctx context.Context, r *pb.CreateJoinTokenRequest) (*pb.CreateJoinTokenResponse, error) {
	if err := a.haveCA(); err != nil {
		return nil, err
	}
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	project, gateway := r.GetProject(), r.GetGateway()
	if project == "" {
		project = "default"
	}
	if name := "projects/" + project + "/gateways/" + gateway; gateway != "-" && !a.Exists(name) {
		return nil, status.Errorf(codes.InvalidArgument, "gateway: %s is not there: create it first, or say \"-\" for all gateways of the project", name)
	}
	id := pki.ProxyID(project, gateway, r.GetName())
	if err := a.checkRevoked(id); err != nil {
		return nil, err
	}
	if left, err := a.sweep(ctx); err != nil {
		return nil, err
	} else if left >= maxTokens {
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d join tokens already: wait until some have expired", left)
	}
	ttl := defaultTokenTTL
	if r.GetTtl() != nil {
		ttl = r.GetTtl().AsDuration()
	}
	who := api.CallerName(ctx)
	token := a.CA.NewJoinToken()
	t := joinToken{Identity: id, Expires: a.now().Add(ttl).UTC(), Author: who}
	value, err := json.Marshal(t)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := a.State.PutState(ctx, joinPrefix+"token/"+service.HashHex(token.Secret[:]), value); err != nil {
		return nil, service.StoreError(err)
	}
	service.NoteChange(ctx, "join-token "+id, "", service.ShortHash(value))
	a.audit("made a join token", "identity", id, "by", who, "until", t.Expires)
	return &pb.CreateJoinTokenResponse{Token: token.String(), Identity: id, ExpireTime: timestamppb.New(t.Expires)}, nil
}

// subjectOf checks and normalises who is revoked or allowed.
func subjectOf(id, serial string) (key string, err error) {
	if serial != "" {
		s, err := pki.ParseSerial(serial)
		if err != nil {
			return "", status.Errorf(codes.InvalidArgument, "serial: %v", err)
		}
		return serialSubject(s), nil
	}
	if _, _, _, err := pki.ParseProxyID(id); err != nil {
		return "", status.Errorf(codes.InvalidArgument, "identity: %v", err)
	}
	return identitySubject(id), nil
}

// RevokeProxy implements pb.ProxyAdmissionServiceServer.
func (a admission) RevokeProxy(ctx context.Context, r *pb.RevokeProxyRequest) (*pb.RevokeProxyResponse, error) {
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	subject, err := subjectOf(r.GetIdentity(), r.GetSerial())
	if err != nil {
		return nil, err
	}
	who := api.CallerName(ctx)
	out := &pb.Revocation{Reason: r.GetReason(), Author: who, RevokeTime: timestamppb.New(a.now())}
	if serial, ok := strings.CutPrefix(subject, "serial/"); ok {
		out.Subject = &pb.Revocation_Serial{Serial: serial}
	} else {
		out.Subject = &pb.Revocation_Identity{Identity: r.GetIdentity()}
	}
	value, err := proto.Marshal(out)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := a.State.PutState(ctx, revokedPrefix+subject, value); err != nil {
		return nil, service.StoreError(err)
	}
	service.NoteChange(ctx, revokedPrefix+subject, "", service.ShortHash(value))
	a.audit("revoked", "subject", subject, "by", who, "reason", r.GetReason())
	// In force here when this returns; other replicas hear of it.
	if err := a.load(ctx); err != nil {
		return nil, service.StoreError(err)
	}
	return &pb.RevokeProxyResponse{Revocation: out}, nil
}

// AllowProxy implements pb.ProxyAdmissionServiceServer.
func (a admission) AllowProxy(ctx context.Context, r *pb.AllowProxyRequest) (*pb.AllowProxyResponse, error) {
	if err := protovalidate.Validate(r); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	subject, err := subjectOf(r.GetIdentity(), r.GetSerial())
	if err != nil {
		return nil, err
	}
	read, err := a.State.ReadKey(ctx, revokedPrefix+subject)
	if err != nil {
		return nil, service.StoreError(err)
	}
	value, was := read.Values[revokedPrefix+subject]
	was = was || slices.ContainsFunc(read.Damaged, func(d store.StateDamage) bool { return d.Key == revokedPrefix+subject })
	if err := errors.Join(a.State.DeleteState(ctx, revokedPrefix+subject), a.load(ctx)); err != nil {
		return nil, service.StoreError(err)
	}
	if was {
		service.NoteChange(ctx, revokedPrefix+subject, cmp.Or(service.ShortHash(value), "damaged"), "")
		a.audit("allowed again", "subject", subject, "by", api.CallerName(ctx))
	}
	return &pb.AllowProxyResponse{WasRevoked: was}, nil
}

// ListRevocations implements pb.ProxyAdmissionServiceServer.
func (a admission) ListRevocations(context.Context, *pb.ListRevocationsRequest) (*pb.ListRevocationsResponse, error) {
	return &pb.ListRevocationsResponse{Revocations: a.guard.list()}, nil
}
