package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/access/connect"
)

// rawStatus is how grpc-go prints a status that another error wraps. Its code says
// nothing that the text beside it does not say.
var rawStatus = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// describeError turns an error into what a person reads.
func describeError(err error) string {
	st, ok := status.FromError(err)
	if !ok {
		return rawStatus.ReplaceAllString(err.Error(), "")
	}
	return rawStatus.ReplaceAllString(describeStatus(st), "")
}

// describeStatus says what a gRPC status means to who typed the command. What the
// control plane says stands by itself.
func describeStatus(st *status.Status) string {
	text := st.Message()
	if why := connect.WrongScheme(text); why != "" {
		return why
	}
	if _, why, ok := strings.Cut(text, "authentication handshake failed: "); ok {
		return "the server is not trusted: " + strings.Trim(why, "\"") + " (a token of Penstock knows its control plane; for other credentials give its certificate authority, --ca of `penstock login` or PENSTOCK_CA_FILE)"
	}
	switch st.Code() {
	case codes.Unavailable:
		if strings.Contains(text, "connection error") || strings.Contains(text, "name resolver error") || strings.Contains(text, "error reading from server") {
			return "the control plane does not answer (" + transportText(text) + "): is `penstock up` running by this user, or is --server or --context needed?"
		}
	case codes.Unauthenticated:
		return "the control plane does not know who you are: " + text
	case codes.PermissionDenied:
		return "not allowed: " + text
	case codes.DeadlineExceeded:
		return "the control plane did not answer in time"
	case codes.Canceled:
		return "the call was cancelled"
	case codes.Unimplemented:
		if strings.HasPrefix(text, "unknown ") {
			return "the control plane does not know this call (" + text + "): it is older than this command; `penstock version` and `penstock status` tell both versions"
		}
	case codes.Internal:
		return "the control plane failed: " + text
	}
	return text
}

// transportText is the reason in what grpc-go says of a connection that failed:
// `connection error: desc = "transport: Error while dialing: dial tcp …: connect: …"`.
func transportText(text string) string {
	if _, why, ok := strings.Cut(text, `desc = "`); ok {
		text = strings.TrimSuffix(why, `"`)
	}
	for _, prefix := range []string{"transport: ", "Error while dialing: "} {
		text = strings.TrimPrefix(text, prefix)
	}
	return text
}

// exitCodes is what the commands end with, for their users.
const exitCodes = "Exit codes: 0 for done and serving, 1 for an error, a bad file included, 2 for differences (diff)\n" +
	"and findings (analyze), 3 for a revision that is stored and does not all serve, and a damaged store."

// exitCode is what exitCodes says.
func exitCode(err error) int {
	switch {
	case errors.Is(err, errNotServing), errors.Is(err, errDamaged):
		return 3
	case errors.Is(err, errDiffers), errors.Is(err, errFindings):
		return 2
	}
	return 1
}

// maxReason bounds a reason in a line or a cell of a table, in characters.
const maxReason = 240

// shorten makes one line of a reason. The output of a tool ends with what matters, or
// says it in its last line that begins with ERROR.
func shorten(reason string) string {
	var lines []string
	for line := range strings.Lines(reason) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	line := strings.TrimSuffix(lines[0], "; last output:")
	if len(lines) > 1 {
		last := lines[len(lines)-1]
		for _, l := range slices.Backward(lines) {
			if strings.HasPrefix(strings.ToUpper(strings.TrimPrefix(l, "[")), "ERROR") {
				last = l
				break
			}
		}
		if !strings.HasSuffix(line, strings.TrimPrefix(last, "[ERROR] ")) { // else the first line says it
			line = strings.TrimRight(line, ": ") + ": … " + last
		}
	}
	if r := []rune(line); len(r) > maxReason {
		line = string(r[:maxReason]) + "…"
	}
	return line
}

// counted is a number of things.
func counted(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// more is where the whole of a shortened text is told; "" when nothing is missing.
func more(object, whole, short string) string {
	if short == strings.TrimSpace(whole) {
		return ""
	}
	project, kind, id, err := gateway.KindOf(object)
	if err != nil {
		return ""
	}
	command := "penstock get " + kind + "/" + id
	if kind == gateway.KindFunctions {
		command = "penstock fn describe " + id
	}
	if project != defaultProject {
		command += " --project " + project
	}
	return "; more: " + command
}

// functionWords say what a ProxyProblem of a function means, by its state.
var functionWords = map[string]string{
	"failing": "cannot run", "starting": "is starting", "unknown": "is not heard of", "no-runner": "cannot run", "no-version": "cannot run",
}

// problemText is one line for what is in the way of a revision.
func problemText(p *pb.ProxyProblem) string {
	if p.GetProxy() == runnerProblem {
		return functionProblem(p.GetObject(), cmp.Or(functionWords[p.GetState()], p.GetState()), p.GetDetail())
	}
	if p.GetProxy() == listenerProblem {
		return fmt.Sprintf("%s is not served: %s", short(p.GetObject()), p.GetDetail())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", p.GetProxy(), p.GetState())
	if p.GetResource() != "" {
		fmt.Fprintf(&b, " %s %s", p.GetType(), p.GetResource())
	}
	if p.GetObject() != "" {
		fmt.Fprintf(&b, " (from %s)", p.GetObject())
	}
	if p.GetDetail() != "" {
		fmt.Fprintf(&b, ": %s", strings.ReplaceAll(strings.TrimSpace(p.GetDetail()), "\n", "; "))
	}
	return b.String()
}

// objectProblem is one line for what is wrong with an object.
func objectProblem(p *pb.ObjectProblem) string {
	line := shorten(p.GetMessage())
	where := short(p.GetObject())
	if p.GetField() != "" {
		where += ": " + p.GetField()
	}
	return where + ": " + line + more(p.GetObject(), p.GetMessage(), line)
}

// functionProblem is a line about a function, and where the rest is told.
func functionProblem(name, words, detail string) string {
	line := shorten(detail)
	return fmt.Sprintf("%s %s: %s%s", short(name), words, line, more(name, detail, line))
}

// The proxy of a ProxyProblem that is of a function, and of a route that no listener
// serves.
const (
	runnerProblem   = "runner"
	listenerProblem = "listener"
)

func printServing(w io.Writer, s *pb.ServingReport) {
	if s.GetTotal() == 0 {
		fmt.Fprintln(w, "no proxy is connected, so nothing serves it")
	} else {
		fmt.Fprintf(w, "serving on %d of %d proxies\n", s.GetServing(), s.GetTotal())
	}
	for _, p := range s.GetProblems() {
		fmt.Fprintf(w, "  %s\n", problemText(p))
	}
}
