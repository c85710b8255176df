package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// FileReport is what VerifyFile found.
type FileReport struct {
	Report
	// Before is the hash of the record before First, which is not in the file; "" when
	// First begins the chain.
	Before string
	// Hash is that of the record Last.
	Hash string
	// Has reports whether a record with a hash is in the file.
	Has func(hash string) bool
}

// VerifyFile checks the chain in a file of records, one JSON object on each line, in the answer
// of ListAudit in JSON, or in a folder of a log, without a control plane. What is missing
// before the first and after the last record it cannot tell.
func VerifyFile(path string) (FileReport, error) {
	files := []string{path}
	info, err := os.Stat(path)
	if err != nil {
		return FileReport{}, err
	}
	if info.IsDir() {
		if files, err = filepath.Glob(filepath.Join(path, "audit-*.jsonl")); err != nil {
			return FileReport{}, err
		}
		slices.Sort(files)
	}
	v := &fileCheck{hashes: map[string]bool{}}
	for _, f := range files {
		if err := v.read(f); err != nil {
			return FileReport{}, err
		}
	}
	if !v.begun {
		return FileReport{}, fmt.Errorf("%s holds no record of an audit log", path)
	}
	c := v.checked
	return FileReport{
		Report: Report{First: c.first, Last: c.last, Broken: c.broken, Problem: c.problem},
		Before: v.before, Hash: c.hash, Has: func(hash string) bool { return v.hashes[hash] },
	}, nil
}

// fileCheck follows the records of files.
type fileCheck struct {
	checked
	begun  bool
	before string
	hashes map[string]bool
}

func (v *fileCheck) read(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		ended := errors.Is(err, io.EOF)
		if err != nil && !ended {
			return err
		}
		var record Record
		switch bad := json.Unmarshal(line, &record); {
		case len(bytes.TrimSpace(line)) == 0:
		case n == 1 && (bad != nil || record.Number == 0):
			rest, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			return v.answer(file, append(line, rest...))
		case ended:
			v.firstFault(v.last+1, "the file ends in the middle of record %d", v.last+1)
		case bad != nil:
			v.firstFault(v.last+1, "record %d cannot be read", v.last+1)
		default:
			v.follow(line, record)
		}
		if ended {
			return nil
		}
	}
}

// answer reads the answer of ListAudit.
func (v *fileCheck) answer(file string, b []byte) error {
	var m pb.ListAuditResponse
	if err := protojson.Unmarshal(b, &m); err != nil || len(m.GetRecords()) == 0 {
		return fmt.Errorf("%s holds no records of an audit log: want the files of DATA-DIR/access/audit, or what `penstock audit ls -o json` prints", file)
	}
	for _, a := range m.GetRecords() {
		r := Record{
			Number: a.GetNumber(), Time: a.GetTime().AsTime(), Identity: a.GetIdentity(), Via: a.GetVia(), From: a.GetFrom(), Action: a.GetAction(),
			Verdict: a.GetVerdict(), Reason: a.GetReason(), Previous: a.GetPrevious(), Hash: a.GetHash(),
		}
		for _, o := range a.GetObjects() {
			r.Objects = append(r.Objects, Object{Name: o.GetName(), Before: o.GetBefore(), After: o.GetAfter()})
		}
		line, err := json.Marshal(r)
		if err != nil {
			return err
		}
		v.follow(append(line, '\n'), r)
	}
	return nil
}

// follow checks the next record.
func (v *fileCheck) follow(line []byte, r Record) {
	if !v.begun {
		v.begun, v.before = true, r.Previous
		v.checked = checked{first: r.Number, last: r.Number - 1, hash: r.Previous}
	}
	if v.broken == 0 {
		v.follows(line, r, anchor{})
	}
	if v.broken == 0 {
		v.hashes[strings.ToLower(r.Hash)] = true
	}
	v.last, v.hash = r.Number, r.Hash
}

// firstFault notes the first thing that is wrong.
func (v *fileCheck) firstFault(number int64, format string, args ...any) {
	v.begun = true
	if v.broken == 0 {
		v.fail(max(1, number), format, args...)
	}
}
