package lambda

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/penstock-gateway/penstock/functions/instance"
)

const (
	// integrationResponse is the content type of a streamed answer with a prelude.
	integrationResponse = "application/vnd.awslambda.http-integration-response"
	// maxPrelude bounds the JSON before the separator of eight zero bytes.
	maxPrelude = 1 << 20

	trailerType = "Lambda-Runtime-Function-Error-Type"
	trailerBody = "Lambda-Runtime-Function-Error-Body"
)

// streamed is an answer that is read while the handler makes it.
type streamed struct {
	r *http.Request
	// prelude tells that status and headers come first.
	prelude bool
	abort   func()
}

// isStream goes by the content type, for aws-lambda-go does not send the mode.
func isStream(r *http.Request) bool {
	return mediaType(r) == integrationResponse || strings.EqualFold(r.Header.Get("Lambda-Runtime-Function-Response-Mode"), "streaming")
}

func mediaType(r *http.Request) string {
	t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return t
}

// stream hands the request's body to the waiting call and holds the runtime until
// it was read.
func (a *api) stream(w http.ResponseWriter, r *http.Request, k *call) {
	control := http.NewResponseController(w)
	res := &result{stream: &streamed{
		r: r, prelude: mediaType(r) == integrationResponse,
		abort: func() { _ = control.SetReadDeadline(time.Unix(1, 0)) },
	}}
	if a.settle(k.id, res) == nil {
		refuseID(w, k.id)
		return
	}
	<-k.over
	accept(w)
}

// writeStream answers with a streamed body. The error of a handler that fails in
// the middle comes in trailers: then the caller's connection is cut.
func (c *contract) writeStream(ctx context.Context, w http.ResponseWriter, s *streamed, inv *instance.Invocation) error {
	defer inv.End()
	stop := context.AfterFunc(ctx, s.abort)
	defer stop()
	body := bufio.NewReaderSize(s.r.Body, 32<<10)
	head := &Response{Status: http.StatusOK, Header: http.Header{"Content-Type": {"application/octet-stream"}}}
	if s.prelude {
		prelude, err := readPrelude(body)
		if err == nil {
			head, err = parsePrelude(prelude)
		}
		if err != nil {
			if f := streamFailure(s.r.Trailer); f != nil {
				return c.write(ctx, w, &result{failure: f}, inv)
			}
			return c.internalError(w, inv, instance.KindBadResponse, "a streamed answer: "+err.Error())
		}
	} else if t := s.r.Header.Get("Content-Type"); t != "" {
		head.Header.Set("Content-Type", t)
	}
	head.writeHead(w)
	control := http.NewResponseController(w)
	if err := control.Flush(); err != nil {
		return context.Canceled
	}
	if err := copyFlushing(w, control, body); err != nil {
		return err
	}
	if f := streamFailure(s.r.Trailer); f != nil {
		return c.internalError(w, inv, instance.KindHandlerError, "in the middle of its answer: "+f.String())
	}
	return nil
}

// copyFlushing copies each piece as it comes. Its errors are ErrDied for a
// handler that ended, and context.Canceled for a caller that went away: the
// handler is then let run to its end.
func copyFlushing(w io.Writer, control *http.ResponseController, r io.Reader) error {
	buf := make([]byte, 32<<10)
	var gone error
	for {
		n, err := r.Read(buf)
		if n > 0 && gone == nil {
			if _, err := w.Write(buf[:n]); err != nil || control.Flush() != nil {
				gone = context.Canceled
			}
		}
		if errors.Is(err, io.EOF) {
			return gone
		}
		if err != nil {
			return instance.ErrDied
		}
	}
}

// readPrelude reads up to the separator of eight zero bytes.
func readPrelude(r *bufio.Reader) ([]byte, error) {
	var prelude []byte
	end := make([]byte, 8)
	for {
		b, err := r.ReadByte()
		if err != nil {
			return nil, fmt.Errorf("it ended in its prelude: %w", err)
		}
		prelude = append(prelude, b)
		if b == 0 && bytes.HasSuffix(prelude, end) {
			return prelude[:len(prelude)-len(end)], nil
		}
		if len(prelude) > maxPrelude {
			return nil, fmt.Errorf("its prelude is longer than %d bytes", maxPrelude)
		}
	}
}

// streamFailure reads the trailers that a runtime sends when a handler failed in
// the middle of its answer.
func streamFailure(t http.Header) *Failure {
	kind := t.Get(trailerType)
	if kind == "" {
		return nil
	}
	f := &Failure{Type: kind}
	if b, err := base64.StdEncoding.DecodeString(t.Get(trailerBody)); err == nil {
		_ = json.Unmarshal(b, f)
	}
	return f
}
