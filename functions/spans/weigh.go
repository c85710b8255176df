package spans

import (
	"reflect"

	collectortracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const (
	// maxDecoded bounds what a request takes when it is decoded, and maxDecodedAll what
	// those of all instances take together. An empty span is 2 bytes of a request and
	// some 250 of memory, so the length of a request bounds little: 2 MiB of them,
	// which compress to 2 KiB, would take 300 MiB. 2 MiB of short attributes take 25.
	maxDecoded    = 40 << 20
	maxDecodedAll = 128 << 20
	// element is about what one more of a list takes beside its content.
	element = 24
	// jsonObject is about what an object takes while JSON is being decoded: a map, and
	// the message that it becomes.
	jsonObject = 300
)

// shape is what is needed to weigh a message.
type shape struct {
	size   int
	fields map[protowire.Number]*shape // of messages
}

// requestShape is that of a request.
var requestShape = shapeOf((&collectortracev1.ExportTraceServiceRequest{}).ProtoReflect().Descriptor(), map[protoreflect.FullName]*shape{})

func shapeOf(d protoreflect.MessageDescriptor, known map[protoreflect.FullName]*shape) *shape {
	if s := known[d.FullName()]; s != nil {
		return s
	}
	s := &shape{fields: map[protowire.Number]*shape{}}
	known[d.FullName()] = s
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err) // a message of a generated package
	}
	s.size = int(reflect.TypeOf(t.Zero().Interface()).Elem().Size())
	for i := range d.Fields().Len() {
		if f := d.Fields().Get(i); f.Message() != nil {
			s.fields[f.Number()] = shapeOf(f.Message(), known)
		}
	}
	return s
}

// weigh is about how much memory a message takes when it is decoded, beside the bytes
// of its texts. What is not valid weighs what comes before: the decoder refuses it.
func (s *shape) weigh(b []byte, depth int) int {
	total := s.size
	for len(b) > 0 && depth > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				break
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			break
		}
		b = b[n:]
		total += element
		if inner := s.fields[number]; inner != nil {
			total += inner.weigh(value, depth-1)
		}
	}
	return total
}

// weighJSON is the same for JSON.
func weighJSON(b []byte) int {
	total, quoted := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case quoted:
		case c == '{':
			total += jsonObject
		case c == ',' || c == '[':
			total += 2 * element
		}
	}
	return total
}
