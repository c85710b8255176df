package azure

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// document is what the Functions host posts to a handler.
type document struct {
	Data     map[string]any `json:"Data"`
	Metadata map[string]any `json:"Metadata"`
}

// requestDocument is an HTTP request in it.
type requestDocument struct {
	URL    string `json:"Url"`
	Method string `json:"Method"`
	// Query is JSON in a string, as the host has it; the values of one name are
	// joined by commas.
	Query   string              `json:"Query"`
	Headers map[string][]string `json:"Headers"`
	Params  map[string]string   `json:"Params"`
	// Identities is JSON in a string: none, for the gateway has authenticated.
	Identities string `json:"Identities"`
	// Body is a string; for octets and multipart it is base64. Absent when empty.
	Body any `json:"Body,omitempty"`
}

func newDocument(r *http.Request, body []byte, f *Function, params map[string]string) ([]byte, error) {
	scheme := "http"
	if p := r.Header.Get("X-Forwarded-Proto"); p == "http" || p == "https" {
		scheme = p
	}
	query := joinQuery(r.URL.RawQuery)
	queryText, err := json.Marshal(query)
	if err != nil {
		return nil, err
	}
	headers := map[string][]string{"Host": {r.Host}}
	for k, v := range r.Header {
		headers[k] = v
	}
	if params == nil {
		params = map[string]string{}
	}
	d := requestDocument{
		URL: scheme + "://" + r.Host + r.URL.RequestURI(), Method: r.Method, Query: string(queryText),
		Headers: headers, Params: params, Identities: "[]",
	}
	if len(body) > 0 {
		d.Body = strings.ToValidUTF8(string(body), "\uFFFD")
		if isOctets(r.Header.Get("Content-Type")) {
			d.Body = body
		}
	}
	joined := make(map[string]string, len(headers))
	for k, v := range headers {
		joined[k] = strings.Join(v, ",")
	}
	meta := map[string]any{
		"Query": query, "Headers": joined,
		"sys": map[string]string{"MethodName": f.Name, "UtcNow": time.Now().UTC().Format(time.RFC3339Nano), "RandGuid": newGUID()},
	}
	for k, v := range params { // each value is a JSON text of its own
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		meta[k] = string(text)
	}
	return json.Marshal(document{Data: map[string]any{f.Trigger: d}, Metadata: meta})
}

func isOctets(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/octet-stream" || strings.HasPrefix(media, "multipart/"))
}

// joinQuery decodes a query string; what cannot be decoded stays as it is.
func joinQuery(raw string) map[string]string {
	out := map[string]string{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		k, v = unescape(k), unescape(v)
		if old, ok := out[k]; ok {
			v = old + "," + v
		}
		out[k] = v
	}
	return out
}

func unescape(s string) string {
	if t, err := url.QueryUnescape(s); err == nil {
		return t
	}
	return s
}

func newGUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// answer is an HTTP answer in the answer of a handler.
type answer struct {
	status int
	header http.Header
	body   []byte
	logs   []string
}

// answerDocument is what a handler answers; names are read without regard to case.
type answerDocument struct {
	Outputs     map[string]json.RawMessage
	ReturnValue json.RawMessage
	Logs        []string
}

// httpOutput is an http output binding.
type httpOutput struct {
	StatusCode, Status json.RawMessage
	Body               json.RawMessage
	Headers            map[string]json.RawMessage
}

// parseAnswer reads what a handler answered to an invocation document. A function
// without an http output, or one that sets none, is answered with 204, as on Azure.
func parseAnswer(b []byte, f *Function) (*answer, error) {
	var d answerDocument
	if err := decodeJSON(b, &d); err != nil {
		return nil, fmt.Errorf("it must be an object with Outputs, ReturnValue and Logs: %w", err)
	}
	a := &answer{status: http.StatusNoContent, header: http.Header{}, logs: d.Logs}
	var raw json.RawMessage
	switch f.Output {
	case "":
		return a, nil
	case "$return":
		raw = d.ReturnValue
	default:
		for name, v := range d.Outputs {
			if strings.EqualFold(name, f.Output) {
				raw = v
			}
		}
	}
	if len(raw) == 0 || string(raw) == "null" {
		return a, nil
	}
	a.status = http.StatusOK
	if err := a.output(raw, f.Output == "$return"); err != nil {
		return nil, fmt.Errorf("output %s: %w", f.Output, err)
	}
	return a, nil
}

// output reads an http output: an object with statusCode, headers and body, or,
// where any value may be returned, the body.
func (a *answer) output(raw json.RawMessage, anyValue bool) error {
	var names map[string]json.RawMessage
	isObject := json.Unmarshal(raw, &names) == nil && names != nil
	whole := true
	for name := range names {
		switch strings.ToLower(name) {
		case "statuscode", "status", "body", "headers":
			whole = false
		}
	}
	if !isObject || whole && len(names) > 0 {
		if !anyValue && !isObject {
			return errors.New("it must be an object with statusCode, headers and body")
		}
		a.setBody(raw)
		return nil
	}
	var o httpOutput
	if err := decodeJSON(raw, &o); err != nil {
		return err
	}
	for _, s := range []json.RawMessage{o.StatusCode, o.Status} {
		if len(s) == 0 || string(s) == "null" {
			continue
		}
		n, err := strconv.Atoi(strings.Trim(string(s), `"`))
		if err != nil || n < 200 || n > 599 {
			return fmt.Errorf("statusCode is %.40s, it must be a number from 200 to 599", s)
		}
		a.status = n
		break
	}
	for name, v := range o.Headers {
		if err := a.setHeader(name, v); err != nil {
			return err
		}
	}
	if len(o.Body) > 0 && string(o.Body) != "null" {
		a.setBody(o.Body)
	}
	return nil
}

// connectionHeaders are of a connection, not of an answer.
var connectionHeaders = map[string]bool{
	"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Te": true, "Trailer": true,
	"Transfer-Encoding": true, "Upgrade": true, "Content-Length": true,
}

func (a *answer) setHeader(name string, raw json.RawMessage) error {
	var v any
	if err := decodeJSON(raw, &v); err != nil {
		return err
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, v := range list {
		var text string
		switch v := v.(type) {
		case string:
			text = v
		case json.Number:
			text = v.String()
		case bool:
			text = strconv.FormatBool(v)
		default:
			return fmt.Errorf("header %.100q: it is not a string", name)
		}
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(text) {
			return fmt.Errorf("header %.100q: the name or the value has characters that HTTP does not allow", name)
		}
		if !connectionHeaders[http.CanonicalHeaderKey(name)] {
			a.header.Add(name, text)
		}
	}
	return nil
}

// setBody makes a JSON value the body: a string is the text, all else is JSON.
func (a *answer) setBody(raw json.RawMessage) {
	contentType := "application/json; charset=utf-8"
	a.body = raw
	var s string
	if json.Unmarshal(raw, &s) == nil {
		a.body, contentType = []byte(s), "text/plain; charset=utf-8"
	}
	if a.header.Get("Content-Type") == "" {
		a.header.Set("Content-Type", contentType)
	}
}

func decodeJSON(b []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(to); err != nil {
		if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			return fmt.Errorf("%s is a JSON %s", t.Field, t.Value)
		}
		return err
	}
	if d.More() {
		return errors.New("more follows after its end")
	}
	return nil
}
