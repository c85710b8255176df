package change

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/gateway/source/api"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// pruneSetAnnotation names the set that an object was applied with.
const pruneSetAnnotation = "penstock.dev/prune-set"

// stamp fills what the server writes: uid, times, origin, etag.
func (pl *Planner) stamp(o, old gateway.Object, w *api.Write) {
	md := metadataOf(o)
	clearStatus(o)
	now := timestamppb.New(pl.Now())
	md.Uid, md.CreateTime, md.UpdateTime = rand.Text(), now, now
	if old != nil {
		md.Uid, md.CreateTime = old.GetMetadata().GetUid(), old.GetMetadata().GetCreateTime()
		// A write without a set leaves the object in the set that it is in.
		if set := old.GetMetadata().GetAnnotations()[pruneSetAnnotation]; set != "" && w.PruneSet == "" {
			Annotate(o, pruneSetAnnotation, set)
		}
	}
	if md.GetOrigin().GetSource() == "" {
		md.Origin = &pb.Origin{Source: w.Source}
	}
	md.Origin.Caller = w.Caller
	keepHidden(o, old)
	if w.Source != sourceRollback {
		keepRollback(o, old)
	}
	md.Etag = etag(o, old)
}

// keepHidden lets a client send back a Secret that it read: the API never returns
// values, so an update without them, or with gateway.HiddenValue, means "as it was".
func keepHidden(o, old gateway.Object) {
	s, ok := o.(*pb.Secret)
	was, _ := old.(*pb.Secret)
	if !ok || was == nil {
		return
	}
	if s.GetValue() == nil && len(s.GetData()) == 0 && was.GetJwks() != "" {
		s.Value = &pb.Secret_Jwks{Jwks: was.GetJwks()}
	}
	if s.GetCertificate() != nil && s.GetCertificate().GetPrivateKey() == "" && was.GetCertificate().GetChain() == s.GetCertificate().GetChain() {
		s.GetCertificate().PrivateKey = was.GetCertificate().GetPrivateKey()
	}
	for key, value := range s.GetData() {
		if before, there := was.GetData()[key]; there && value == gateway.HiddenValue {
			s.Data[key] = before
		}
	}
}

func metadataOf(o gateway.Object) *pb.Metadata {
	if md := o.GetMetadata(); md != nil {
		return md
	}
	m := o.ProtoReflect()
	return m.Mutable(m.Descriptor().Fields().ByName("metadata")).Message().Interface().(*pb.Metadata)
}

// Annotate gives an object an annotation.
func Annotate(o gateway.Object, key, value string) {
	md := metadataOf(o)
	if md.Annotations == nil {
		md.Annotations = map[string]string{}
	}
	md.Annotations[key] = value
}

func clearStatus(o gateway.Object) {
	m := o.ProtoReflect()
	if f := m.Descriptor().Fields().ByName("status"); f != nil {
		m.Clear(f)
	}
}

// etag is a hash of what the user wrote: neither times, uid nor origin change it, so that
// the same file is not a change wherever it lies and whoever applies it. It stays as long as
// the content, also when an earlier version of Penstock made it in another way. That
// of a secret is random: everybody who may read a secret's name sees the etag, and from a
// hash a short password could be guessed.
func etag(o, old gateway.Object) string {
	b := content(o)
	if old != nil {
		if tag := old.GetMetadata().GetEtag(); tag != "" && bytes.Equal(content(proto.Clone(old).(gateway.Object)), b) {
			return tag
		}
	}
	if _, secret := o.(*pb.Secret); secret {
		return strings.ToLower(rand.Text()[:20])
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:10])
}

// content is what the user wrote of an object, which is as before afterwards.
func content(o gateway.Object) []byte {
	clearStatus(o)
	md := metadataOf(o)
	uid, tag, created, updated, origin := md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin
	md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin = "", "", nil, nil, nil
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(o)
	md.Uid, md.Etag, md.CreateTime, md.UpdateTime, md.Origin = uid, tag, created, updated, origin
	if err != nil {
		panic(fmt.Sprintf("marshal %s: %v", o.GetName(), err)) // only invalid UTF-8, which decoding refused
	}
	return b
}
