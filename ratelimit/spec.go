package ratelimit

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Bounds of a Spec; they are those of penstock.v1.RateLimit.
const (
	// MaxRequests bounds Requests and Burst.
	MaxRequests = 1_000_000_000
	// MinWindow and MaxWindow bound Window.
	MinWindow = time.Millisecond
	MaxWindow = 366 * 24 * time.Hour
	// MaxID and MaxName bound ID and Name, in bytes.
	MaxID   = 512
	MaxName = 63
	// maxSpecText bounds what ParseSpec reads: every byte of ID and Name escaped.
	maxSpecText = 3*(MaxID+MaxName) + 128
)

// specVersion is the first field of the text of a Spec. A change of the text's
// meaning takes a new version, for limiters and proxies are not renewed at once.
const specVersion = "v1"

// Algorithm is how requests are counted.
type Algorithm uint8

// The algorithms; the zero value is GCRA.
const (
	// GCRA is the generic cell rate algorithm: an even rate with a burst.
	GCRA Algorithm = iota
	// FixedWindow is a counter that starts again at each multiple of the window
	// since the Unix epoch.
	FixedWindow
)

// Key says whose requests share a counter.
type Key uint8

// The keys; the zero value is ConsumerOrAddress.
const (
	// ConsumerOrAddress counts per authenticated consumer, per client address
	// without one.
	ConsumerOrAddress Key = iota
	// Address counts per client address.
	Address
	// Shared has one counter for all.
	Shared
)

// Failure is what happens to a request when its counter cannot be reached.
type Failure uint8

// The failure policies; the zero value is Open.
const (
	// Open lets the request pass, marked as degraded.
	Open Failure = iota
	// Closed refuses the request.
	Closed
)

var (
	algorithmText = [...]string{GCRA: "gcra", FixedWindow: "fixed"}
	keyText       = [...]string{ConsumerOrAddress: "consumer", Address: "address", Shared: "shared"}
	failureText   = [...]string{Open: "open", Closed: "closed"}
)

// String returns "gcra" or "fixed".
func (a Algorithm) String() string { return enumText(algorithmText[:], int(a)) }

// String returns "consumer", "address" or "shared".
func (k Key) String() string { return enumText(keyText[:], int(k)) }

// String returns "open" or "closed".
func (f Failure) String() string { return enumText(failureText[:], int(f)) }

func enumText(texts []string, i int) string {
	if i < len(texts) {
		return texts[i]
	}
	return "invalid(" + strconv.Itoa(i) + ")"
}

// Spec is one limit, whole: the limiter has no other configuration. It travels
// as text in the entry "limit" of a descriptor.
type Spec struct {
	// ID is the identity of the counter: the full name of the object that carries
	// the limit, '#', and the limit's name. It does not depend on the numbers, so
	// a changed limit keeps its count.
	ID string
	// Name is what the RateLimit headers call the limit.
	Name string
	// Requests may be made in each Window.
	Requests uint32
	// Window has a resolution of a microsecond.
	Window time.Duration
	// Burst is how many requests may come at once (GCRA only); 0: Requests.
	Burst     uint32
	Algorithm Algorithm
	Key       Key
	OnFailure Failure
	// Shadow limits are counted and reported, and refuse nothing.
	Shadow bool
}

// Limit returns how many requests can be admitted at once: Burst for GCRA (or
// Requests, when no Burst is given), Requests for a fixed window.
func (s Spec) Limit() uint32 {
	if s.Algorithm == GCRA {
		return cmp.Or(s.Burst, s.Requests)
	}
	return s.Requests
}

// String returns the compact, stable text of the limit, which ParseSpec reads:
//
//	v1|requests|window|burst|algorithm|key|failure|shadow or -|name|id
//
// The window is a number of microseconds with "us", or of milliseconds "ms" or
// seconds "s" where that is exact. Name and ID are percent-encoded where they
// hold anything but letters, digits and "-._~/#:@". Equal limits have equal
// texts.
func (s Spec) String() string {
	b := make([]byte, 0, 64+len(s.ID)+len(s.Name))
	b = append(b, specVersion...)
	b = append(b, '|')
	b = strconv.AppendUint(b, uint64(s.Requests), 10)
	b = append(b, '|')
	b = appendWindow(b, s.Window)
	b = append(b, '|')
	b = strconv.AppendUint(b, uint64(s.Burst), 10)
	for _, text := range []string{s.Algorithm.String(), s.Key.String(), s.OnFailure.String()} {
		b = append(b, '|')
		b = append(b, text...)
	}
	b = append(b, '|')
	if s.Shadow {
		b = append(b, "shadow"...)
	} else {
		b = append(b, '-')
	}
	b = append(b, '|')
	b = appendEscaped(b, s.Name)
	b = append(b, '|')
	b = appendEscaped(b, s.ID)
	return string(b)
}

func appendWindow(b []byte, w time.Duration) []byte {
	switch {
	case w%time.Second == 0:
		return append(strconv.AppendInt(b, int64(w/time.Second), 10), 's')
	case w%time.Millisecond == 0:
		return append(strconv.AppendInt(b, int64(w/time.Millisecond), 10), "ms"...)
	default:
		return append(strconv.AppendInt(b, int64(w/time.Microsecond), 10), "us"...)
	}
}

// plain are the bytes that stand for themselves in the text.
func plain(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~/#:@", c) >= 0
}

func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}

// Validate reports everything that is wrong with the limit.
func (s Spec) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.ID == "" || len(s.ID) > MaxID {
		bad("id has %d bytes, it must have 1 to %d", len(s.ID), MaxID)
	}
	if s.Name == "" || len(s.Name) > MaxName {
		bad("name has %d bytes, it must have 1 to %d", len(s.Name), MaxName)
	}
	for i := range len(s.Name) {
		// What a structured-field string can hold (RFC 9651, section 3.3.3).
		if s.Name[i] < 0x20 || s.Name[i] > 0x7e {
			bad("name %q must be printable ASCII", s.Name)
			break
		}
	}
	if s.Requests < 1 || s.Requests > MaxRequests {
		bad("requests is %d, it must be 1 to %d", s.Requests, MaxRequests)
	}
	if s.Window < MinWindow || s.Window > MaxWindow {
		bad("window is %s, it must be %s to %s", s.Window, MinWindow, MaxWindow)
	} else if s.Window%time.Microsecond != 0 {
		bad("window is %s, it must be whole microseconds", s.Window)
	}
	if s.Burst > MaxRequests {
		bad("burst is %d, it must be at most %d", s.Burst, MaxRequests)
	}
	if int(s.Algorithm) >= len(algorithmText) {
		bad("algorithm %s is unknown", s.Algorithm)
	} else if s.Algorithm != GCRA && s.Burst != 0 {
		bad("burst belongs to algorithm gcra, not to %s", s.Algorithm)
	}
	if int(s.Key) >= len(keyText) {
		bad("key %s is unknown", s.Key)
	}
	if int(s.OnFailure) >= len(failureText) {
		bad("failure policy %s is unknown", s.OnFailure)
	}
	return errors.Join(errs...)
}

// ParseSpec reads the text that String made. It takes that text only: leading
// zeros, other escapes, missing or further fields are errors, which name the
// field.
func ParseSpec(text string) (Spec, error) {
	s, err := parseSpec(text)
	if err != nil {
		if len(text) > 256 {
			text = text[:256] + "…"
		}
		return Spec{}, fmt.Errorf("limit %q: %w", text, err)
	}
	return s, nil
}

func parseSpec(text string) (s Spec, err error) {
	if len(text) > maxSpecText {
		return s, fmt.Errorf("%d bytes are too long, %d are allowed", len(text), maxSpecText)
	}
	f := strings.Split(text, "|")
	if f[0] != specVersion {
		return s, fmt.Errorf("version %q is unknown, this limiter reads %s: is it older than the control plane?", f[0], specVersion)
	}
	const fields = 10
	if len(f) != fields {
		return s, fmt.Errorf("%d fields, expected %d: v1|requests|window|burst|algorithm|key|failure|shadow or -|name|id", len(f), fields)
	}
	if s.Requests, err = parseCount("requests", f[1]); err != nil {
		return s, err
	}
	if s.Window, err = parseWindow(f[2]); err != nil {
		return s, err
	}
	if s.Burst, err = parseCount("burst", f[3]); err != nil {
		return s, err
	}
	if s.Algorithm, err = parseEnum[Algorithm]("algorithm", algorithmText[:], f[4]); err != nil {
		return s, err
	}
	if s.Key, err = parseEnum[Key]("key", keyText[:], f[5]); err != nil {
		return s, err
	}
	if s.OnFailure, err = parseEnum[Failure]("failure policy", failureText[:], f[6]); err != nil {
		return s, err
	}
	switch f[7] {
	case "-":
	case "shadow":
		s.Shadow = true
	default:
		return s, fmt.Errorf("shadow is %q, it must be \"shadow\" or \"-\"", f[7])
	}
	if s.Name, err = unescape("name", f[8]); err != nil {
		return s, err
	}
	if s.ID, err = unescape("id", f[9]); err != nil {
		return s, err
	}
	if err := s.Validate(); err != nil {
		return s, err
	}
	if canonical := s.String(); canonical != text {
		return s, fmt.Errorf("it is not in canonical form, which is %q", canonical)
	}
	return s, nil
}

func parseCount(field, text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is %q, it must be a number from 0 to %d", field, text, MaxRequests)
	}
	return uint32(n), nil
}

func parseWindow(text string) (time.Duration, error) {
	for _, u := range []struct {
		suffix string
		unit   time.Duration
	}{{"us", time.Microsecond}, {"ms", time.Millisecond}, {"s", time.Second}} {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil || n > uint64(MaxWindow/u.unit) {
			break
		}
		return time.Duration(n) * u.unit, nil
	}
	return 0, fmt.Errorf("window is %q, it must be a number with us, ms or s, at most %s", text, MaxWindow)
}

func parseEnum[T ~uint8](field string, texts []string, text string) (T, error) {
	for i, t := range texts {
		if t == text {
			return T(i), nil
		}
	}
	return 0, fmt.Errorf("%s is %q, it must be one of %s", field, text, strings.Join(texts, ", "))
}

func unescape(field, text string) (string, error) {
	s, err := url.PathUnescape(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	return s, nil
}
