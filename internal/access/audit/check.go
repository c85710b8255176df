package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
)

// Report is what Verify found.
type Report struct {
	First, Last int64
	// Broken is the number of the first record that is not as it was; 0: none.
	Broken  int64
	Problem string
}

// Verify checks the chain against itself and against the anchor in the store.
func (l *Log) Verify(ctx context.Context) (Report, error) {
	// The anchor first: what comes after it is only ever added.
	known, there, err := l.anchored(ctx)
	if err != nil {
		return Report{}, err
	}
	c := l.check(known)
	if !there && c.problem == "" {
		c.fail(max(1, c.last), unanchored)
	}
	return Report{First: c.first, Last: c.last, Broken: c.broken, Problem: c.problem}, nil
}

// checked is the state of a check of the chain.
type checked struct {
	first, last, broken int64
	hash, problem       string
}

func (c *checked) fail(number int64, format string, args ...any) bool {
	c.broken, c.problem = number, fmt.Sprintf(format, args...)
	return false
}

// check follows the chain from where the anchor says that it begins.
func (l *Log) check(known anchor) checked {
	first, before := known.First, known.Before
	if first == 0 {
		first = 1
	}
	c := checked{first: first, last: first - 1, hash: before}
	sound := true
	err := l.each(func(line []byte) bool {
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			if sound {
				sound = c.fail(c.last+1, "record %d cannot be read", c.last+1)
			}
			return true
		}
		if r.Number < first {
			return true // to be removed: the chain begins later
		}
		if sound {
			sound = c.follows(line, r, known)
		}
		c.last, c.hash = r.Number, r.Hash
		return true
	})
	switch {
	case err != nil && sound:
		c.fail(c.last+1, "the log cannot be read: %v", err)
	case sound && c.last < known.Number:
		c.fail(c.last+1, "records %d to %d are missing at the end: the store knows of them", c.last+1, known.Number)
	}
	return c
}

// follows checks one record against the one before and the anchor.
func (c *checked) follows(line []byte, r Record, known anchor) bool {
	hash, err := r.hash()
	again, _ := json.Marshal(r)
	switch {
	case r.Number <= c.last:
		return c.fail(r.Number, "record %d comes after record %d: records were put in, or are of the log of another replica", r.Number, c.last)
	case r.Number != c.last+1:
		return c.fail(c.last+1, "records %d to %d are missing", c.last+1, r.Number-1)
	case r.Previous != c.hash:
		return c.fail(r.Number, "record %d does not follow the record before it: one of them was replaced", r.Number)
	case err != nil || hash != r.Hash:
		return c.fail(r.Number, "record %d was changed: its hash is not that of its content", r.Number)
	case !bytes.Equal(line, append(again, '\n')):
		return c.fail(r.Number, "record %d was changed: it has more in it than it was written with", r.Number)
	case r.Number == known.Number && r.Hash != known.Hash:
		return c.fail(r.Number, "record %d is not the one that the store knows: the end of the log was rewritten", r.Number)
	}
	return true
}
