package ratelimit

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	commonratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
)

// Domain is the only domain that is served.
const Domain = "penstock"

// Keys of descriptor entries. EntryLimit is there always; EntryIssuer and
// EntrySubject when the request has a verified token; one of the addresses when it
// has a client address. Envoy's actions choose the names of the last two.
//
// The keys and the limit come from the configuration. All other values come from the
// caller: whatever they are, the request is counted, because an error would leave
// it to the failure policy, and a caller who can cause one has no limit at all.
const (
	EntryLimit         = "limit"                 // the text of a Spec
	EntryIssuer        = "iss"                   // who vouches for the consumer
	EntrySubject       = "sub"                   // the consumer
	EntryAddress       = "address"               // the client's address
	EntryRemoteAddress = "remote_address"        // the same, of Envoy's action remote_address
	EntryMaskedAddress = "masked_remote_address" // with a prefix length, of masked_remote_address
)

const (
	// maxDescriptors bounds the limits of one request: 8 on each of gateway, route
	// and rule are 24.
	maxDescriptors = 64
)

// Reasons of refused descriptors, for the metric.
const (
	reasonDomain     = "domain"
	reasonCount      = "count"
	reasonEntry      = "entry"
	reasonLimit      = "limit"
	reasonUnsupports = "unsupported"
)

// invalid is a malformed request.
type invalid struct {
	reason string
	err    error
}

// Error implements error.
func (e *invalid) Error() string { return e.err.Error() }

func badDescriptor(reason string, i int, err error) error {
	return &invalid{reason, fmt.Errorf("descriptor %d: %w", i, err)}
}

// parser turns the descriptors of Envoy into Requests. Texts of limits repeat, so
// it remembers them.
type parser struct {
	mu    sync.RWMutex
	specs map[string]Spec
}

// maxSpecs bounds the memory of a parser; beyond it, it begins anew.
const maxSpecs = 10_000

func (p *parser) spec(text string) (Spec, error) {
	p.mu.RLock()
	s, ok := p.specs[text]
	p.mu.RUnlock()
	if ok {
		return s, nil
	}
	s, err := ParseSpec(text)
	if err != nil {
		return Spec{}, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.specs == nil || len(p.specs) >= maxSpecs {
		p.specs = map[string]Spec{}
	}
	p.specs[text] = s
	return s, nil
}

// requests reads a whole call. Errors are *invalid and name the descriptor.
func (p *parser) requests(req *ratelimitv3.RateLimitRequest) ([]Request, error) {
	if req.GetDomain() != Domain {
		return nil, &invalid{reasonDomain, fmt.Errorf("domain %q is unknown, this limiter serves %q", cut(req.GetDomain()), Domain)}
	}
	descriptors := req.GetDescriptors()
	if len(descriptors) == 0 || len(descriptors) > maxDescriptors {
		return nil, &invalid{reasonCount, fmt.Errorf("%d descriptors, expected 1 to %d", len(descriptors), maxDescriptors)}
	}
	out := make([]Request, len(descriptors))
	for i, d := range descriptors {
		r, err := p.request(d, i)
		if err != nil {
			return nil, err
		}
		switch {
		case d.GetHitsAddend() != nil:
			r.Cost = uint32(min(d.GetHitsAddend().GetValue(), MaxRequests+1)) // above it nothing fits
		case req.GetHitsAddend() != 0:
			r.Cost = min(req.GetHitsAddend(), MaxRequests+1)
		default:
			r.Cost = 1 // rls.proto: hits_addend 0 means 1
		}
		out[i] = r
	}
	return out, nil
}

// entries are the values of a descriptor.
type entries struct{ limit, issuer, subject, address string }

func (p *parser) request(d *commonratelimitv3.RateLimitDescriptor, i int) (Request, error) {
	e, err := readEntries(d)
	if err != nil {
		return Request{}, badDescriptor(reasonEntry, i, err)
	}
	if d.GetLimit() != nil {
		return Request{}, badDescriptor(reasonUnsupports, i, errors.New("a limit override is not supported: the limit is in the entry \"limit\""))
	}
	if d.GetIsNegativeHits() {
		return Request{}, badDescriptor(reasonUnsupports, i, errors.New("is_negative_hits is not supported"))
	}
	s, err := p.spec(e.limit)
	if err != nil {
		return Request{}, badDescriptor(reasonLimit, i, err)
	}
	return Request{Key: counterKey(s, e), Spec: s}, nil
}

// readEntries fails only for what the configuration of the proxy makes.
func readEntries(d *commonratelimitv3.RateLimitDescriptor) (e entries, err error) {
	var seen [4]*string
	n := 0
	for _, entry := range d.GetEntries() {
		var to *string
		switch entry.GetKey() {
		case EntryLimit:
			to = &e.limit
		case EntryIssuer:
			to = &e.issuer
		case EntrySubject:
			to = &e.subject
		case EntryAddress, EntryRemoteAddress, EntryMaskedAddress:
			to = &e.address
		default:
			return e, fmt.Errorf("entry %q is unknown, expected limit, iss, sub, address, remote_address, masked_remote_address", cut(entry.GetKey()))
		}
		if slices.Contains(seen[:n], to) {
			return e, fmt.Errorf("duplicate entry %q", entry.GetKey())
		}
		seen[n] = to
		n++
		*to = entry.GetValue()
	}
	if e.limit == "" {
		return e, errors.New("the entry \"limit\" is missing or empty")
	}
	return e, nil
}

// unknownAddress stands for the address of all requests that come without one.
const unknownAddress = "?"

// counterKey names the counter: the limit's ID and whose it is. A consumer without
// an issuer or a subject counts by its address, and whoever has neither shares one
// counter with all of that kind.
func counterKey(s Spec, e entries) string {
	switch {
	case s.Key == Shared:
		return s.ID + "|s"
	case s.Key == ConsumerOrAddress && e.issuer != "" && e.subject != "":
		return s.ID + "|c" + consumerHash(e.issuer, e.subject)
	case e.address == "":
		return s.ID + "|a" + unknownAddress
	default:
		return s.ID + "|a" + addressKey(e.address)
	}
}

// consumerHash hides who the consumer is, for keys are seen in Redis and in dumps, and
// makes every key short. The length of the issuer comes first, so that no other pair
// has the same bytes. Half of SHA-256 is enough: to take another consumer's counter
// somebody would have to find a given hash, 2^128 tries.
func consumerHash(issuer, subject string) string {
	b := make([]byte, 0, 8+len(issuer)+len(subject))
	b = binary.BigEndian.AppendUint64(b, uint64(len(issuer)))
	b = append(b, issuer...)
	b = append(b, subject...)
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:16])
}

// addressKey is the address whose requests are counted together: an IPv4 address,
// or the /64 of an IPv6 one, since a single client has a whole /64 to choose from.
// A shorter prefix, which a proxy may have been told to send, stays as it is.
func addressKey(address string) string {
	ip, err := netip.ParseAddr(address)
	if prefix, perr := netip.ParsePrefix(address); perr == nil {
		if ip, err = prefix.Addr(), nil; ip.Is4() && prefix.Bits() < 32 || ip.Is6() && prefix.Bits() < 64 {
			return prefix.Masked().String()
		}
	}
	if err != nil {
		// A unix socket's path, or whatever the proxy knows.
		sum := sha256.Sum256([]byte(address))
		return "#" + base64.RawURLEncoding.EncodeToString(sum[:16])
	}
	ip = ip.Unmap().WithZone("")
	if ip.Is6() {
		p, _ := ip.Prefix(64) // fails for no IPv6 address
		return p.String()
	}
	return ip.String()
}

func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}
