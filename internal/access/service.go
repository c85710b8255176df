package access

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

const (
	defaultTokenTTL = 90 * 24 * time.Hour
	// tokenKept is how long a token is listed after its end, so that a late user is
	// told that it expired.
	tokenKept = 7 * 24 * time.Hour
	// maxStored bounds the tokens, the bindings and the roles, each.
	maxStored = 10_000
)

// Server is the AccessService.
type Server struct {
	pb.UnimplementedAccessServiceServer
	s *Service
}

// Server returns the AccessService of the guard.
func (s *Service) Server() *Server { return &Server{s: s} }

func validate(m proto.Message) error {
	if err := protovalidate.Validate(m); err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return nil
}

func unavailable(err error) error { return status.Errorf(codes.Unavailable, "store: %v", err) }

// WhoAmI implements pb.AccessServiceServer.
func (v *Server) WhoAmI(ctx context.Context, _ *pb.WhoAmIRequest) (*pb.WhoAmIResponse, error) {
	id := From(ctx)
	out := &pb.WhoAmIResponse{Identity: id.Name, Via: id.Via, Grants: v.s.rights(id).grants}
	if !id.Expires.IsZero() {
		out.ExpireTime = timestamppb.New(id.Expires)
	}
	if id.Owner {
		out.Grants = []*pb.Grant{{Role: RoleAdmin, Project: AllProjects}}
	}
	return out, nil
}

// CheckAccess implements pb.AccessServiceServer.
func (v *Server) CheckAccess(ctx context.Context, r *pb.CheckAccessRequest) (*pb.CheckAccessResponse, error) {
	id := From(ctx)
	goes := vocabulary[r.GetVerb()]
	switch {
	case goes == nil:
		return nil, status.Errorf(codes.InvalidArgument, "verb: %.64q is not one of %s", r.GetVerb(), strings.Join(verbs(), ", "))
	case !slices.Contains(goes, r.GetKind()):
		return nil, status.Errorf(codes.InvalidArgument, "kind: %s goes with %s, not with %.64q", r.GetVerb(), strings.Join(goes, ", "), r.GetKind())
	}
	project := cmp.Or(r.GetProject(), "default")
	if role := v.s.rights(id).by(r.GetVerb(), r.GetKind(), project); role != "" {
		return &pb.CheckAccessResponse{Allowed: true, Reason: "by the role " + role}, nil
	}
	return &pb.CheckAccessResponse{Reason: status.Convert(refusal(id, right{r.GetVerb(), r.GetKind(), project})).Message()}, nil
}

// ListRoles implements pb.AccessServiceServer.
func (v *Server) ListRoles(context.Context, *pb.ListRolesRequest) (*pb.ListRolesResponse, error) {
	out := &pb.ListRolesResponse{}
	for _, r := range v.s.policy.Load().roles {
		out.Roles = append(out.Roles, r)
	}
	slices.SortFunc(out.Roles, func(a, b *pb.Role) int {
		if a.GetBuiltin() != b.GetBuiltin() {
			return map[bool]int{true: -1, false: 1}[a.GetBuiltin()]
		}
		return strings.Compare(a.GetName(), b.GetName())
	})
	return out, nil
}

// holds refuses to hand on what the caller does not hold.
func (v *Server) holds(ctx context.Context, r *pb.Role, project string) error {
	if lacking := v.s.rights(From(ctx)).missing(r, project); len(lacking) > 0 {
		return status.Errorf(codes.PermissionDenied, "%s cannot give what it does not hold: %s", describeGrant(&pb.Grant{Role: r.GetName(), Project: project}), strings.Join(lacking, ", "))
	}
	return nil
}

// mayGrant checks that the caller may manage the access of a project, and holds what
// it gives there.
func (v *Server) mayGrant(ctx context.Context, verb string, grants ...*pb.Grant) error {
	for _, g := range grants {
		role := v.s.policy.Load().roles[g.GetRole()]
		if role == nil {
			return status.Errorf(codes.InvalidArgument, "role: %q does not exist: `penstock access roles` lists them", g.GetRole())
		}
		if err := v.s.Check(ctx, verb, "access", g.GetProject()); err != nil {
			return err
		}
		if err := v.holds(ctx, role, g.GetProject()); err != nil {
			return err
		}
	}
	return nil
}

// SetRole implements pb.AccessServiceServer.
func (v *Server) SetRole(ctx context.Context, r *pb.SetRoleRequest) (*pb.SetRoleResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	role := proto.CloneOf(r.GetRole())
	role.Builtin = false
	p := v.s.policy.Load()
	old := p.roles[role.GetName()]
	switch {
	case old.GetBuiltin():
		return nil, status.Errorf(codes.FailedPrecondition, "the role %s is built in: choose another name", role.GetName())
	case len(p.roles) >= maxStored:
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d roles already", len(p.roles))
	}
	if err := checkRole(role); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if err := v.holds(ctx, role, AllProjects); err != nil {
		return nil, err
	}
	if err := v.put(ctx, rolePrefix+role.GetName(), role); err != nil {
		return nil, err
	}
	return &pb.SetRoleResponse{Role: role}, nil
}

// put stores a message, and has it in force here when it returns.
func (v *Server) put(ctx context.Context, key string, m proto.Message) error {
	b, err := protojson.Marshal(m)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return v.putBytes(ctx, key, b)
}

func (v *Server) putBytes(ctx context.Context, key string, b []byte) error {
	old, err := v.s.state.State(ctx, key)
	if err != nil {
		return unavailable(err)
	}
	if !bytes.Equal(old[key], b) {
		noteChange(ctx, key, shortHash(old[key]), shortHash(b))
	}
	if err := v.s.state.PutState(ctx, key, b); err != nil {
		return unavailable(err)
	}
	return v.reload(ctx)
}

// shortHash stands for what is stored, in the audit log.
func shortHash(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}

func (v *Server) remove(ctx context.Context, key string) error {
	old, err := v.s.state.State(ctx, key)
	if err != nil {
		return unavailable(err)
	}
	noteChange(ctx, key, shortHash(old[key]), "")
	if err := v.s.state.DeleteState(ctx, key); err != nil {
		return unavailable(err)
	}
	return v.reload(ctx)
}

func (v *Server) reload(ctx context.Context) error {
	if err := v.s.load(ctx); err != nil {
		return unavailable(err)
	}
	return nil
}

// DeleteRole implements pb.AccessServiceServer.
func (v *Server) DeleteRole(ctx context.Context, r *pb.DeleteRoleRequest) (*pb.DeleteRoleResponse, error) {
	p := v.s.policy.Load()
	role := p.roles[r.GetName()]
	switch {
	case role == nil:
		return nil, status.Errorf(codes.NotFound, "the role %.64q does not exist", r.GetName())
	case role.GetBuiltin():
		return nil, status.Errorf(codes.FailedPrecondition, "the role %s is built in", role.GetName())
	}
	var users []string
	uses := func(g *pb.Grant) bool { return g.GetRole() == role.GetName() }
	for subject, list := range p.bindings {
		if slices.ContainsFunc(list, func(b *pb.Binding) bool { return uses(b.GetGrant()) }) {
			users = append(users, subject)
		}
	}
	for name, t := range p.byName {
		if slices.ContainsFunc(t.token.GetGrants(), uses) {
			users = append(users, "token:"+name)
		}
	}
	if len(users) > 0 {
		slices.Sort(users)
		return nil, status.Errorf(codes.FailedPrecondition, "the role %s is used by %s", role.GetName(), strings.Join(slices.Compact(users), ", "))
	}
	return &pb.DeleteRoleResponse{}, v.remove(ctx, rolePrefix+role.GetName())
}

// ListBindings implements pb.AccessServiceServer.
func (v *Server) ListBindings(ctx context.Context, _ *pb.ListBindingsRequest) (*pb.ListBindingsResponse, error) {
	out := &pb.ListBindingsResponse{}
	for _, list := range v.s.policy.Load().bindings {
		for _, b := range list {
			if v.s.Check(ctx, "read", "access", b.GetGrant().GetProject()) == nil {
				out.Bindings = append(out.Bindings, b)
			}
		}
	}
	slices.SortFunc(out.Bindings, func(a, b *pb.Binding) int {
		return cmp.Or(strings.Compare(a.GetSubject(), b.GetSubject()), strings.Compare(a.GetGrant().GetProject(), b.GetGrant().GetProject()),
			strings.Compare(a.GetGrant().GetRole(), b.GetGrant().GetRole()))
	})
	return out, nil
}

// CreateBinding implements pb.AccessServiceServer.
func (v *Server) CreateBinding(ctx context.Context, r *pb.CreateBindingRequest) (*pb.CreateBindingResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	b := proto.CloneOf(r.GetBinding())
	if err := v.mayGrant(ctx, "create", b.GetGrant()); err != nil {
		return nil, err
	}
	if n := len(v.s.policy.Load().bindings); n >= maxStored {
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d bindings already", n)
	}
	b.Author, b.CreateTime = From(ctx).Name, timestamppb.New(v.s.now())
	if err := v.put(ctx, bindingKey(b.GetSubject(), b.GetGrant()), b); err != nil {
		return nil, err
	}
	return &pb.CreateBindingResponse{Binding: b}, nil
}

// DeleteBinding implements pb.AccessServiceServer.
func (v *Server) DeleteBinding(ctx context.Context, r *pb.DeleteBindingRequest) (*pb.DeleteBindingResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	if err := v.s.Check(ctx, "delete", "access", r.GetGrant().GetProject()); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(v.s.policy.Load().bindings[r.GetSubject()], func(b *pb.Binding) bool { return proto.Equal(b.GetGrant(), r.GetGrant()) }) {
		return nil, status.Errorf(codes.NotFound, "%.256s has no binding to %s", r.GetSubject(), describeGrant(r.GetGrant()))
	}
	return &pb.DeleteBindingResponse{}, v.remove(ctx, bindingKey(r.GetSubject(), r.GetGrant()))
}

// seesToken reports whether the caller may see or end a token: who manages the
// access of each project that it is for.
func (v *Server) seesToken(ctx context.Context, verb string, t *pb.Token) error {
	for _, g := range t.GetGrants() {
		if err := v.s.Check(ctx, verb, "access", g.GetProject()); err != nil {
			return err
		}
	}
	return nil
}

// ListTokens implements pb.AccessServiceServer.
func (v *Server) ListTokens(ctx context.Context, _ *pb.ListTokensRequest) (*pb.ListTokensResponse, error) {
	out := &pb.ListTokensResponse{}
	for _, t := range v.s.policy.Load().byName {
		if v.seesToken(ctx, "read", t.token) == nil {
			out.Tokens = append(out.Tokens, t.token)
		}
	}
	slices.SortFunc(out.Tokens, func(a, b *pb.Token) int { return strings.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

// CreateToken implements pb.AccessServiceServer.
func (v *Server) CreateToken(ctx context.Context, r *pb.CreateTokenRequest) (*pb.CreateTokenResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	t := proto.CloneOf(r.GetToken())
	// What is bound to the token's name comes with it.
	all := slices.Clone(t.GetGrants())
	for _, b := range v.s.policy.Load().bindings["token:"+t.GetName()] {
		all = append(all, b.GetGrant())
	}
	if err := v.mayGrant(ctx, "create", all...); err != nil {
		return nil, err
	}
	if err := v.sweep(ctx); err != nil {
		return nil, err
	}
	p := v.s.policy.Load()
	if p.byName[t.GetName()] != nil {
		return nil, status.Errorf(codes.AlreadyExists, "there is a token %q already: revoke it, or choose another name", t.GetName())
	}
	if n := len(p.byName); n >= maxStored {
		return nil, status.Errorf(codes.ResourceExhausted, "there are %d tokens already", n)
	}
	ttl := defaultTokenTTL
	if r.GetTtl() != nil {
		ttl = r.GetTtl().AsDuration()
	}
	now := v.s.now()
	t.Author, t.CreateTime, t.ExpireTime = From(ctx).Name, timestamppb.New(now), timestamppb.New(now.Add(ttl))
	if id := From(ctx); !id.Expires.IsZero() && now.Add(ttl).After(id.Expires) && id.tokenHash != nil {
		// Else a token could live for ever in its children.
		t.ExpireTime = timestamppb.New(id.Expires)
	}
	secret := NewToken(v.s.hash)
	h := hashOf(secret)
	token, err := protojson.Marshal(t)
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	b, err := json.Marshal(storedToken{Token: token, Hash: base64.StdEncoding.EncodeToString(h[:])})
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	if err := v.putBytes(ctx, tokenPrefix+t.GetName(), b); err != nil {
		return nil, err
	}
	return &pb.CreateTokenResponse{Token: t, Secret: FormatToken(secret)}, nil
}

// sweep forgets tokens that expired a while ago.
func (v *Server) sweep(ctx context.Context) error {
	for name, t := range v.s.policy.Load().byName {
		if v.s.now().After(t.token.GetExpireTime().AsTime().Add(tokenKept)) {
			if err := v.s.state.DeleteState(ctx, tokenPrefix+name); err != nil {
				return unavailable(err)
			}
		}
	}
	return v.reload(ctx)
}

// RevokeToken implements pb.AccessServiceServer.
func (v *Server) RevokeToken(ctx context.Context, r *pb.RevokeTokenRequest) (*pb.RevokeTokenResponse, error) {
	name := strings.TrimPrefix(r.GetName(), "token:")
	t := v.s.policy.Load().byName[name]
	if t == nil {
		return nil, status.Errorf(codes.NotFound, "there is no token %.64q", name)
	}
	if err := v.seesToken(ctx, "delete", t.token); err != nil {
		return nil, err
	}
	return &pb.RevokeTokenResponse{}, v.remove(ctx, tokenPrefix+name)
}
