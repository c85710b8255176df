package ratelimit

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
)

// who is what a caller can put into a descriptor: any bytes, or nothing.
type who struct{ issuer, subject, address []byte }

// encode is a call with two descriptors as Envoy makes them: one for all, and one for
// the caller, whose values go out as they are, UTF-8 or not.
func (w who) encode(t testing.TB, shared, per Spec) []byte {
	t.Helper()
	b, err := proto.Marshal(call1(descriptor(EntryLimit, shared.String())))
	if err != nil {
		t.Fatal(err)
	}
	entry := func(d []byte, key string, value []byte) []byte {
		if value == nil {
			return d
		}
		var e []byte
		e = protowire.AppendString(protowire.AppendTag(e, 1, protowire.BytesType), key)
		e = protowire.AppendBytes(protowire.AppendTag(e, 2, protowire.BytesType), value)
		return protowire.AppendBytes(protowire.AppendTag(d, 1, protowire.BytesType), e)
	}
	var d []byte
	d = entry(d, EntryLimit, []byte(per.String()))
	d = entry(d, EntryIssuer, w.issuer)
	d = entry(d, EntrySubject, w.subject)
	d = entry(d, EntryMaskedAddress, w.address)
	return protowire.AppendBytes(protowire.AppendTag(b, 2, protowire.BytesType), d)
}

// raw sends bytes as a message.
type raw struct{}

func (raw) Name() string                    { return "proto" }
func (raw) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }

// asks is a limiter behind the real gRPC server.
func asks(t testing.TB) func(call []byte) (*ratelimitv3.RateLimitResponse, error) {
	conn := serve(t, NewService(NewMemory(MemoryOptions{}), nil, silent), nil)
	return func(call []byte) (*ratelimitv3.RateLimitResponse, error) {
		res := &ratelimitv3.RateLimitResponse{}
		err := conn.Invoke(context.Background(), ratelimitv3.RateLimitService_ShouldRateLimit_FullMethodName, call, res, grpc.ForceCodec(raw{}))
		return res, err
	}
}

// TestCallersAreCounted: whatever a caller says of himself, he is counted, and so he is
// by the limit beside it.
func TestCallersAreCounted(t *testing.T) {
	ask := asks(t)
	long := func(s string, n int) []byte { return []byte(strings.Repeat(s, n)) }
	iss := []byte("https://issuer")
	for name, w := range map[string]who{
		"plain":             {iss, []byte("alice"), []byte("192.0.2.1/32")},
		"4096 bytes":        {iss, long("a", 4096), nil},
		"4097 bytes":        {iss, long("a", 4097), nil},
		"60 KiB":            {long("i", 60<<10), long("a", 60<<10), long("1", 60<<10)},
		"not UTF-8":         {iss, []byte("a\xff\xfe"), nil},
		"cut UTF-8":         {[]byte("i\xc3"), []byte("a\xe2\x82"), nil},
		"a surrogate":       {iss, []byte("\xed\xa0\x80"), nil},
		"NUL":               {iss, []byte("a\x00b"), nil},
		"line breaks":       {iss, []byte("a\r\nb|c%0a"), nil},
		"empty subject":     {iss, []byte{}, []byte("192.0.2.2/32")},
		"empty issuer":      {[]byte{}, []byte("a"), []byte("192.0.2.3/32")},
		"no subject":        {iss, nil, []byte("192.0.2.4/32")},
		"not an address":    {nil, nil, []byte("unix:/run/x\xff")},
		"empty address":     {nil, nil, []byte{}},
		"nothing":           {},
		"bytes of the text": {[]byte("v1|1|1s"), []byte("|s"), nil},
	} {
		// All of one caller: three pass; of all together four.
		per := Spec{ID: name + "#per", Name: "per", Requests: 3, Window: time.Hour}
		shared := Spec{ID: name + "#all", Name: "all", Requests: 4, Window: time.Hour, Key: Shared}
		call := w.encode(t, shared, per)
		for i := range 5 {
			res, err := ask(call)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			want := ratelimitv3.RateLimitResponse_OK
			if i >= 3 {
				want = ratelimitv3.RateLimitResponse_OVER_LIMIT
			}
			if res.GetOverallCode() != want {
				t.Errorf("%s: request %d: %s", name, i+1, res.GetOverallCode())
			}
		}
		// Somebody else takes the last that all share, and no more.
		for i, want := range []ratelimitv3.RateLimitResponse_Code{ratelimitv3.RateLimitResponse_OK, ratelimitv3.RateLimitResponse_OVER_LIMIT} {
			res, err := ask(who{issuer: []byte("else"), subject: []byte("else")}.encode(t, shared, per))
			if err != nil || res.GetOverallCode() != want {
				t.Errorf("%s: somebody else, request %d: %s, %v", name, i+1, res.GetOverallCode(), err)
			}
		}
	}
}

// TestMostAndLongest: as many limits as a request can have, of the longest caller.
func TestMostAndLongest(t *testing.T) {
	ask := asks(t)
	req := call1()
	for range maxDescriptors {
		d := descriptor(EntryLimit, Spec{ID: strings.Repeat("%", MaxID), Name: strings.Repeat("%", MaxName), Requests: 100, Window: time.Hour}.String(),
			EntryIssuer, strings.Repeat("i", 512), EntrySubject, strings.Repeat("a", 60<<10))
		req.Descriptors = append(req.Descriptors, d)
	}
	b, err := proto.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := ask(b); err != nil || len(res.GetStatuses()) != maxDescriptors {
		t.Errorf("%d statuses, %v", len(res.GetStatuses()), err)
	}
}

// TestDifferentCallersStayApart: what is replaced by a hash is one counter for each.
func TestDifferentCallersStayApart(t *testing.T) {
	ask := asks(t)
	per := Spec{ID: "x#per", Name: "per", Requests: 1, Window: time.Hour}
	shared := Spec{ID: "x#all", Name: "all", Requests: 1000, Window: time.Hour, Key: Shared}
	for _, subject := range []string{"a", "\xff", "\xfe", "\xff\xff", strings.Repeat("a", 5000), strings.Repeat("a", 5001), "a\x00"} {
		res, err := ask(who{issuer: []byte("i"), subject: []byte(subject)}.encode(t, shared, per))
		if err != nil || res.GetOverallCode() != ratelimitv3.RateLimitResponse_OK {
			t.Errorf("%.20q: %s, %v: it shares the counter of another", subject, res.GetOverallCode(), err)
		}
	}
}

// FuzzCallers: nothing that a caller controls is an error, and the second request of
// one caller finds what the first has taken.
func FuzzCallers(f *testing.F) {
	f.Add([]byte("https://issuer"), []byte("alice"), []byte("192.0.2.1/32"), true, true)
	f.Add([]byte("\xff"), []byte{}, []byte("::1"), true, false)
	f.Add([]byte{}, []byte("a\x00"), []byte{}, false, false)
	s := NewService(NewMemory(MemoryOptions{MaxKeys: 10_000, Now: newClock().now}), nil, silent)
	codec := newTolerantCodec()
	n := 0
	f.Fuzz(func(t *testing.T, issuer, subject, address []byte, authenticated, addressed bool) {
		w := who{}
		if authenticated {
			w.issuer, w.subject = append([]byte{}, issuer...), append([]byte{}, subject...)
		}
		if addressed {
			w.address = append([]byte{}, address...)
		}
		n++
		id := strconv.Itoa(n) // counters of its own
		per := Spec{ID: id, Name: "per", Requests: 1_000_000, Window: time.Hour}
		shared := Spec{ID: id, Name: "all", Requests: 1_000_000, Window: time.Hour, Key: Shared}
		var before []uint32
		for range 2 {
			var req ratelimitv3.RateLimitRequest
			if err := codec.Unmarshal(buffer(w.encode(t, shared, per)), &req); err != nil {
				t.Fatalf("%q %q %q: %v", issuer, subject, address, err)
			}
			res, err := s.ShouldRateLimit(context.Background(), &req)
			if err != nil {
				t.Fatalf("%q %q %q: %v", issuer, subject, address, err)
			}
			var left []uint32
			for _, st := range res.GetStatuses() {
				left = append(left, st.GetLimitRemaining())
			}
			for i := range before {
				if left[i] >= before[i] {
					t.Errorf("limit %d: %d left after %d", i, left[i], before[i])
				}
			}
			before = left
		}
	})
}

// FuzzRepairUTF8: any bytes are repaired to what Go reads, or left alone.
func FuzzRepairUTF8(f *testing.F) {
	f.Add([]byte("\x0a\x02\xff\xff"))
	f.Add([]byte{0x0a, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m commonratelimitv3.RateLimitDescriptor_Entry
		out, repaired := repairUTF8(b, m.ProtoReflect().Descriptor())
		if repaired && proto.Unmarshal(out, &m) != nil {
			t.Errorf("%q became %q, which cannot be read", b, out)
		}
		if same, ok := repairUTF8(out, (&emptypb.Empty{}).ProtoReflect().Descriptor()); ok || string(same) != string(out) {
			t.Errorf("%q: a field that is not known was changed", out)
		}
	})
}

func buffer(b []byte) mem.BufferSlice { return mem.BufferSlice{mem.SliceBuffer(b)} }
