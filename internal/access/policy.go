package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/pause"
)

// Keys of the store's run-time state. What is there is no part of a revision, so
// that no rollback brings back a right that was taken away (docs/decisions/0015).
const (
	accessPrefix  = "access/"
	rolePrefix    = accessPrefix + "role/"    // + name: a Role
	bindingPrefix = accessPrefix + "binding/" // + hash of who and what: a Binding
	tokenPrefix   = accessPrefix + "token/"   // + name: a storedToken
)

// State is what the Service needs of the store.
type State interface {
	PutState(ctx context.Context, key string, value []byte) error
	State(ctx context.Context, prefix string) (map[string][]byte, error)
	DeleteState(ctx context.Context, key string) error
	WatchState(ctx context.Context, prefix string) <-chan struct{}
}

// storedToken is what is kept of a token.
type storedToken struct {
	Token json.RawMessage `json:"token"`
	Hash  string          `json:"sha256"` // of its secret, base64
}

type issuedToken struct {
	token *pb.Token
	hash  [sha256.Size]byte
}

// policy is all that is stored of roles, bindings and tokens. It is never changed.
type policy struct {
	roles    map[string]*pb.Role
	bindings map[string][]*pb.Binding // by subject
	tokens   map[[sha256.Size]byte]*issuedToken
	byName   map[string]*issuedToken
}

func newPolicy() *policy {
	p := &policy{
		roles: map[string]*pb.Role{}, bindings: map[string][]*pb.Binding{},
		tokens: map[[sha256.Size]byte]*issuedToken{}, byName: map[string]*issuedToken{},
	}
	for _, r := range builtin {
		p.roles[r.GetName()] = r
	}
	return p
}

// load takes over what is stored. What cannot be read gives nobody a right.
func (s *Service) load(ctx context.Context) error {
	s.loading.Lock()
	defer s.loading.Unlock()
	values, err := s.state.State(ctx, accessPrefix)
	if err != nil {
		return fmt.Errorf("read roles and tokens: %w", err)
	}
	p := newPolicy()
	for key, value := range values {
		if err := p.take(key, value); err != nil {
			s.log.Error("what is stored of access is damaged, and gives nobody a right", "key", key, "error", err)
		}
	}
	s.policy.Store(p)
	s.calls.recheck(s.still)
	return nil
}

func (p *policy) take(key string, value []byte) error {
	switch {
	case strings.HasPrefix(key, rolePrefix):
		r := &pb.Role{}
		if err := protojson.Unmarshal(value, r); err != nil {
			return err
		}
		if p.roles[r.GetName()].GetBuiltin() {
			return fmt.Errorf("it takes the name of the built-in role %s", r.GetName())
		}
		p.roles[r.GetName()] = r
	case strings.HasPrefix(key, bindingPrefix):
		b := &pb.Binding{}
		if err := protojson.Unmarshal(value, b); err != nil {
			return err
		}
		p.bindings[b.GetSubject()] = append(p.bindings[b.GetSubject()], b)
	case strings.HasPrefix(key, tokenPrefix):
		var st storedToken
		d := json.NewDecoder(bytes.NewReader(value))
		d.DisallowUnknownFields() // a newer version may bound a token in a way that this one does not know
		if err := d.Decode(&st); err != nil {
			return err
		}
		t := &issuedToken{token: &pb.Token{}}
		if err := protojson.Unmarshal(st.Token, t.token); err != nil {
			return err
		}
		h, err := base64.StdEncoding.DecodeString(st.Hash)
		if err != nil || copy(t.hash[:], h) != sha256.Size {
			return fmt.Errorf("its hash is damaged")
		}
		p.tokens[t.hash], p.byName[t.token.GetName()] = t, t
	}
	return nil
}

// follow takes over what other replicas write.
func (s *Service) follow(ctx context.Context) {
	for range s.state.WatchState(ctx, accessPrefix) {
		for again := pause.Between(200*time.Millisecond, 5*time.Second); ; {
			err := s.load(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.log.Warn("cannot follow roles and tokens; will try again", "error", err)
			again.Wait(ctx)
		}
	}
}

// rights are those of an identity now.
func (s *Service) rights(id *Identity) rights {
	p := s.policy.Load()
	r := rights{owner: id.Owner, roles: p.roles}
	if id.Owner {
		return r
	}
	if name, ok := strings.CutPrefix(id.Name, "token:"); ok {
		r.grants = append(r.grants, p.byName[name].grantsOf()...)
	}
	for _, b := range p.bindings[id.Name] {
		r.grants = append(r.grants, b.GetGrant())
	}
	for _, g := range id.groups {
		for _, b := range p.bindings["group:"+g] {
			r.grants = append(r.grants, b.GetGrant())
		}
	}
	return r
}

func (t *issuedToken) grantsOf() []*pb.Grant {
	if t == nil {
		return nil
	}
	return t.token.GetGrants()
}

// still reports whether a credential that was good is good now.
func (s *Service) still(id *Identity) bool {
	if !id.Expires.IsZero() && !s.now().Before(id.Expires) {
		return false
	}
	if id.tokenHash == nil {
		return id.spiffe == "" || s.revoked(id.spiffe, id.serial) == nil
	}
	return s.policy.Load().tokens[*id.tokenHash] != nil
}

func bindingKey(subject string, g *pb.Grant) string {
	h := sha256.Sum256([]byte(subject + "\x00" + g.GetRole() + "\x00" + g.GetProject()))
	return bindingPrefix + hex.EncodeToString(h[:16])
}
