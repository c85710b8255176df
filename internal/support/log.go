package support

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// logTail is how much of the end of a log is looked at.
const logTail = 1 << 20

// ErrTextLog says that a log was written as text, in which nothing marks what functions
// printed.
var ErrTextLog = errors.New("it has no lines in JSON, and in others nothing marks what functions print; start with --log-format json")

// Log returns the last lines of a log of `penstock up`, without those that a function
// printed, and without debug lines, which may show requests. counted says how many lines
// of functions there were.
func Log(file string) (text []byte, counted int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, 0, err
	}
	if _, err := f.Seek(max(0, size-logTail), io.SeekStart); err != nil {
		return nil, 0, err
	}
	var out bytes.Buffer
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		kept, function := logLine(line)
		out.Write(kept)
		if function {
			counted++
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", file, err)
		}
	}
	if out.Len() == 0 && counted == 0 && size > 0 {
		return nil, 0, ErrTextLog
	}
	return out.Bytes(), counted, nil
}

// logLine returns a line as it may be shown; empty when it may not. function reports that a
// function printed it.
func logLine(line []byte) (kept []byte, function bool) {
	var r map[string]json.RawMessage
	if json.Unmarshal(line, &r) != nil {
		return nil, false // cut off at its start, or text
	}
	if _, ok := r["stream"]; ok {
		return nil, true
	}
	var level string
	if json.Unmarshal(r["level"], &level) == nil && level == "DEBUG" {
		return nil, false
	}
	// The runner quotes what a function, or its build, printed at its end.
	var service string
	_ = json.Unmarshal(r["service"], &service)
	_, ofFunction := r["function"]
	if ofFunction || slices.Contains([]string{"runner", "penstock-runner"}, service) {
		for _, quotes := range []string{"reason", "error", "detail"} {
			delete(r, quotes)
		}
	}
	kept, err := json.Marshal(r)
	if err != nil {
		return nil, false
	}
	return append(kept, '\n'), false
}
