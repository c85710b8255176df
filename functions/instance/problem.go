package instance

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// ProblemType is the content type of the shim's own answers.
const ProblemType = "application/problem+json"

// Problem is the body of the shim's own answers (RFC 9457), of the same form as the
// gateway's own.
type Problem struct {
	// Type is about:blank: Title is the text of the status.
	Type  string `json:"type"`
	Title string `json:"title"`
	// Status is the HTTP status.
	Status int `json:"status"`
	// Code is what programs compare: PK-FUNCTION- and the kind in capital letters.
	Code string `json:"code"`
	// Detail says what happened.
	Detail string `json:"detail"`
	// RequestID is in the function's log records, too.
	RequestID string `json:"request_id"`
}

// Code is the code of a kind of answer, the value of HeaderError or HeaderRefused.
func Code(kind string) string { return "PK-FUNCTION-" + strings.ToUpper(kind) }

// writeProblem answers with a status, a kind and what happened.
func writeProblem(w http.ResponseWriter, status int, kind, detail, id string) {
	title := http.StatusText(status)
	if title == "" {
		title = "Error"
	}
	body, _ := json.Marshal(Problem{Type: "about:blank", Title: title, Status: status, Code: Code(kind), Detail: detail, RequestID: id})
	writeBody(w, status, ProblemType, body)
}

// writeBody answers with a body; it gives up when the caller makes no room for it.
func writeBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Now().Add(answerLimit))
	defer func() { _ = control.SetWriteDeadline(time.Time{}) }()
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
