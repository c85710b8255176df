package compile

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// validated are the generated messages of go-control-plane.
type validated interface {
	proto.Message
	ValidateAll() error
}

// packer wraps messages and collects what is wrong with them: the constraints of a
// message inside an Any are not checked by the message around it, and Envoy
// refuses everything that comes in the same response.
type packer struct{ errs []error }

func (p *packer) pack(m validated) *anypb.Any {
	if err := m.ValidateAll(); err != nil {
		p.errs = append(p.errs, err)
	}
	a := &anypb.Any{}
	if err := anypb.MarshalFrom(a, m, proto.MarshalOptions{Deterministic: true}); err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), err))
	}
	return a
}

// check notes what is wrong with a message that is not packed.
func (p *packer) check(m validated) {
	if err := m.ValidateAll(); err != nil {
		p.errs = append(p.errs, err)
	}
}

func (p *packer) err() error { return errors.Join(p.errs...) }
