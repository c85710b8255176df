package ratelimit

import (
	"crypto/sha256"
	"encoding/hex"
	"unicode/utf8"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/proto" // registers "proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// tolerantCodec is the codec of gRPC, which also reads messages whose strings are not
// UTF-8: Envoy sends what a caller wrote as it is, and Go's protobuf refuses the whole
// message, which would be an error in the place of a decision.
type tolerantCodec struct{ encoding.CodecV2 }

func newTolerantCodec() tolerantCodec { return tolerantCodec{encoding.GetCodecV2("proto")} }

// Unmarshal implements encoding.CodecV2.
func (c tolerantCodec) Unmarshal(data mem.BufferSlice, v any) error {
	err := c.CodecV2.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	m, ok := v.(proto.Message)
	if !ok {
		return err
	}
	b, repaired := repairUTF8(data.Materialize(), m.ProtoReflect().Descriptor())
	if !repaired {
		return err
	}
	return proto.Unmarshal(b, m)
}

// repairUTF8 replaces each string of an encoded message that is not UTF-8 by its hash,
// so that different strings stay different. It reports whether there was one; what
// is not a well-formed message it returns as it is.
func repairUTF8(b []byte, d protoreflect.MessageDescriptor) (out []byte, repaired bool) {
	out = make([]byte, 0, len(b))
	for rest := b; len(rest) > 0; {
		number, wire, n := protowire.ConsumeField(rest)
		if n < 0 {
			return b, false
		}
		_, _, tag := protowire.ConsumeTag(rest)
		field := d.Fields().ByNumber(number)
		if wire != protowire.BytesType || field == nil {
			out, rest = append(out, rest[:n]...), rest[n:]
			continue
		}
		value, _ := protowire.ConsumeBytes(rest[tag:])
		switch {
		case field.Message() != nil:
			var inner bool
			value, inner = repairUTF8(value, field.Message())
			repaired = repaired || inner
		case field.Kind() == protoreflect.StringKind && !utf8.Valid(value):
			sum := sha256.Sum256(value)
			value, repaired = []byte("not-utf8-sha256:"+hex.EncodeToString(sum[:])), true
		}
		out = protowire.AppendBytes(append(out, rest[:tag]...), value)
		rest = rest[n:]
	}
	return out, repaired
}
