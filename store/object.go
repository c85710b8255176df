package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/unknown"
)

// resourceName returns the full name of whatever kind r holds. It goes by
// reflection so that a new kind needs no change here.
func resourceName(r *pb.Resource) (string, error) {
	m := r.ProtoReflect()
	kind := m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))
	if kind == nil {
		return "", errors.New("the resource holds no kind")
	}
	name := kind.Message().Fields().ByName("name")
	if name == nil {
		return "", fmt.Errorf("%s has no name", kind.Message().FullName())
	}
	return m.Get(kind).Message().Get(name).String(), nil
}

// checkName refuses what cannot be a resource name.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a resource has no name")
	case len(name) > maxNameBytes:
		return fmt.Errorf("the name %.40q… has %d bytes, at most %d fit", name, len(name), maxNameBytes)
	case !utf8.ValidString(name) || strings.ContainsRune(name, 0):
		return fmt.Errorf("the name %q is not text", name)
	}
	return nil
}

// plainBytes is the content of a resource that its stored form is made of. The
// marshalling is deterministic, so equal content has equal bytes; a new version of
// the protobuf library may choose others, which costs one needless rewrite.
func plainBytes(r *pb.Resource) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{kindResource}, r)
}

// encodeResource returns the stored form of a resource: a Secret is sealed.
func (s *sealer) encodeResource(name string, r *pb.Resource) ([]byte, error) {
	data, err := plainBytes(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	if r.GetSecret() != nil {
		sealed, err := s.seal(name, data[1:])
		if err != nil {
			return nil, err
		}
		data = append([]byte{kindSealed}, sealed...)
	}
	if len(data) > MaxObjectBytes {
		return nil, fmt.Errorf("%w: %s takes %d bytes, at most %d fit: split it", ErrInvalid, name, len(data), MaxObjectBytes)
	}
	return data, nil
}

// decodeResource reverses encodeResource. A nil data is an object that is not there.
func (s *sealer) decodeResource(name string, h hash, data []byte) (*pb.Resource, error) {
	const mend = "; write the resource again, or roll back to a revision before it"
	corrupt := func(detail string) error { return &CorruptError{Name: name, Hash: h.String(), Detail: detail + mend} }
	if err := verify(name, h, data); err != nil {
		return nil, corrupt(err.Detail)
	}
	var plain []byte
	switch data[0] {
	case kindResource:
		plain = data[1:]
	case kindSealed:
		var err error
		if plain, err = s.unseal(name, data[1:]); errors.Is(err, ErrSealKey) {
			return nil, err
		} else if err != nil {
			return nil, corrupt(err.Error())
		}
	default:
		return nil, corrupt("it is not a resource")
	}
	r := new(pb.Resource)
	if err := proto.Unmarshal(plain, r); err != nil {
		return nil, corrupt(err.Error())
	}
	// What the fields that are not known would have said may protect something.
	if fields := unknown.Fields(r); len(fields) > 0 {
		return nil, &CorruptError{Name: name, Hash: h.String(), Newer: true,
			Detail: "this one does not know " + strings.Join(fields, ", ")}
	}
	if got, err := resourceName(r); err != nil || got != name {
		return nil, corrupt(fmt.Sprintf("it is the content of %q", got))
	}
	return r, nil
}

// verify checks that content is what its hash says; nil when it is.
func verify(name string, h hash, data []byte) *CorruptError {
	switch {
	case len(data) == 0:
		return &CorruptError{Name: name, Hash: h.String(), Detail: "it is missing"}
	case newBlob(data).hash != h:
		return &CorruptError{Name: name, Hash: h.String(), Detail: "the content does not match the hash"}
	}
	return nil
}
