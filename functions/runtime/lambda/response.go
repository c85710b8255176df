package lambda

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Response is an HTTP answer.
type Response struct {
	Status int
	Header http.Header
	Body   []byte
}

// reply as the payload format 2.0 has it.
type replyDocument struct {
	StatusCode      json.RawMessage            `json:"statusCode"`
	Headers         map[string]json.RawMessage `json:"headers"`
	Cookies         []json.RawMessage          `json:"cookies"`
	Body            json.RawMessage            `json:"body"`
	IsBase64Encoded bool                       `json:"isBase64Encoded"`
}

// ParseResponse reads a handler's answer by the rules of API Gateway's HTTP API,
// payload format 2.0: an object with statusCode is the answer; any other JSON
// value is the body of a 200 of type application/json (a string is that text). An
// error says what is wrong with the answer.
func ParseResponse(payload []byte) (*Response, error) {
	if !json.Valid(payload) {
		return nil, fmt.Errorf("the handler's answer is not JSON: %.100q", payload)
	}
	payload = bytes.TrimSpace(payload)
	plain := &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: payload}
	switch payload[0] {
	case '"':
		var s string
		if err := json.Unmarshal(payload, &s); err != nil {
			return nil, err
		}
		plain.Body = []byte(s)
		return plain, nil
	case '{':
	default:
		return plain, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(payload, &fields); err != nil {
		return nil, fmt.Errorf("the handler's answer: %w", err)
	}
	if _, ok := fields["statusCode"]; !ok {
		return plain, nil
	}
	r, d, err := parseHead(payload)
	if err != nil {
		return nil, err
	}
	if err := r.parseBody(d); err != nil {
		return nil, err
	}
	if r.Header.Get("Content-Type") == "" && len(r.Body) > 0 {
		r.Header.Set("Content-Type", "text/plain; charset=utf-8")
	}
	return r, nil
}

// parsePrelude reads the JSON before a streamed body.
func parsePrelude(b []byte) (*Response, error) {
	if len(bytes.TrimSpace(b)) == 0 {
		b = []byte("{}")
	}
	r, _, err := parseHead(b)
	if err != nil {
		return nil, err
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/octet-stream")
	}
	return r, nil
}

func parseHead(b []byte) (*Response, *replyDocument, error) {
	var d replyDocument
	if err := json.Unmarshal(b, &d); err != nil {
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return nil, nil, fmt.Errorf("the handler's answer: %s is a JSON %s", t.Field, t.Value)
		}
		return nil, nil, fmt.Errorf("the handler's answer: %w", err)
	}
	r, err := d.head()
	return r, &d, err
}

// head reads all but the body.
func (d *replyDocument) head() (*Response, error) {
	r := &Response{Status: http.StatusOK, Header: http.Header{}}
	if len(d.StatusCode) > 0 {
		n, err := strconv.ParseFloat(strings.Trim(string(d.StatusCode), `"`), 64)
		if err != nil || n < 200 || n > 599 || n != float64(int(n)) {
			return nil, fmt.Errorf("the handler's answer: statusCode is %.40s, it must be a number from 200 to 599", d.StatusCode)
		}
		r.Status = int(n)
	}
	// In a fixed order: names that differ in case only are values of one header.
	for _, name := range slices.Sorted(maps.Keys(d.Headers)) {
		if err := r.addHeader(name, d.Headers[name]); err != nil {
			return nil, err
		}
	}
	for _, raw := range d.Cookies {
		if err := r.addHeader("Set-Cookie", raw); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// addHeader adds one value, unless it is null or the header is of the connection.
// AWS leaves a null header out, too.
func (r *Response) addHeader(name string, raw json.RawMessage) error {
	if string(raw) == "null" {
		return nil
	}
	value, ok := scalar(raw)
	if !ok {
		return fmt.Errorf("the handler's answer: header %.100q must be text, a number, a boolean or null, not %.40s", name, raw)
	}
	if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("the handler's answer: header %.100q: the name or the value has characters that HTTP does not allow", name)
	}
	if !hopByHop[http.CanonicalHeaderKey(name)] {
		r.Header.Add(name, value)
	}
	return nil
}

// scalar is the text of a JSON string, or of a number or boolean as it is written.
// It reports whether the value is one of these.
func scalar(raw json.RawMessage) (string, bool) {
	var s string
	switch raw[0] {
	case '"':
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	case '{', '[', 'n':
		return "", false
	}
	return string(raw), true
}

// parseBody reads the body: text or, as AWS takes them too, a number or a boolean as
// it is written. An object or a list is what API Gateway calls a malformed proxy
// response: the handler forgot to make JSON of it, and its callers would notice only
// after it moves to AWS.
func (r *Response) parseBody(d *replyDocument) error {
	if len(d.Body) == 0 || string(d.Body) == "null" {
		return nil
	}
	text, ok := scalar(d.Body)
	if !ok {
		return fmt.Errorf("the handler's answer: body must be text, a number or a boolean, not %.40s: write an object or a list as JSON text (json.dumps, JSON.stringify)", d.Body)
	}
	r.Body = []byte(text)
	if !d.IsBase64Encoded {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return fmt.Errorf("the handler's answer: isBase64Encoded is true, but body is not base64: %w", err)
	}
	r.Body = b
	return nil
}

// hopByHop are headers of a connection, not of an answer; Content-Length is
// counted anew.
var hopByHop = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Content-Length": true,
}

func (r *Response) writeHead(w http.ResponseWriter) {
	h := w.Header()
	for k, v := range r.Header {
		h[k] = v
	}
	w.WriteHeader(r.Status)
}

func (r *Response) write(w http.ResponseWriter) {
	if r.Status != http.StatusNoContent && r.Status != http.StatusNotModified {
		w.Header().Set("Content-Length", strconv.Itoa(len(r.Body)))
	} else {
		r.Body = nil
	}
	r.writeHead(w)
	_, _ = w.Write(r.Body) // a caller that went away needs none
}
