package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// filledLog is the folder of a log of n records, in several files, and its lines.
func filledLog(t *testing.T, n int) (dir string, lines [][]byte) {
	t.Helper()
	dir = t.TempDir()
	l := open(t, dir, &memory{values: map[string][]byte{}})
	l.segment = 1000
	for range n {
		if err := l.Append(Record{Identity: "token:ci", Action: "apply", Verdict: "allowed", Objects: []Object{{Name: "routes/a", After: "1"}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	segments, err := l.segments()
	if err != nil || len(segments) < 2 {
		t.Fatalf("%d files, %v", len(segments), err)
	}
	for _, s := range segments {
		b, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))...)
		lines[len(lines)-1] = append(lines[len(lines)-1], '\n')
	}
	return dir, lines
}

// asAnswer is what `penstock audit ls -o json` prints of lines.
func asAnswer(t *testing.T, lines [][]byte) []byte {
	t.Helper()
	m := &pb.ListAuditResponse{}
	for _, line := range lines {
		var r Record
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		a := &pb.AuditRecord{
			Number: r.Number, Time: timestamppb.New(r.Time), Identity: r.Identity, Via: r.Via, From: r.From, Action: r.Action,
			Verdict: r.Verdict, Reason: r.Reason, Previous: r.Previous, Hash: r.Hash,
		}
		for _, o := range r.Objects {
			a.Objects = append(a.Objects, &pb.AuditObject{Name: o.Name, Before: o.Before, After: o.After})
		}
		m.Records = append(m.Records, a)
	}
	b, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVerifyFile checks a log in each form, whole and with each kind of change.
func TestVerifyFile(t *testing.T) {
	dir, lines := filledLog(t, 12)
	r, err := VerifyFile(dir)
	if err != nil || r.Broken != 0 || r.First != 1 || r.Last != 12 || r.Before != "" || !r.Has(r.Hash) || r.Has("0") {
		t.Fatalf("the folder: %+v, %v", r, err)
	}
	cut := func(from, to int) [][]byte { return lines[from:to] }
	without := slices.Concat(lines[:5], lines[6:])
	swapped := slices.Clone(lines)
	swapped[3], swapped[4] = swapped[4], swapped[3]
	changed := slices.Clone(lines)
	changed[7] = bytes.Replace(lines[7], []byte("token:ci"), []byte("token:xx"), 1)
	for what, c := range map[string]struct {
		lines       [][]byte
		first, last int64
		want        string
	}{
		"whole": {lines, 1, 12, ""}, "the end": {cut(4, 12), 5, 12, ""}, "the beginning": {cut(0, 3), 1, 3, ""},
		"one missing": {without, 1, 12, "records 6 to 6 are missing"}, "two in another order": {swapped, 1, 12, "records 4 to 4 are missing"},
		"one changed": {changed, 1, 12, "record 8 was changed"}, "two chains": {slices.Concat(cut(0, 3), lines), 1, 12, "record 1 comes after record 3"},
	} {
		for form, content := range map[string][]byte{"lines": bytes.Join(c.lines, nil), "an answer": asAnswer(t, c.lines)} {
			file := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := VerifyFile(file)
			if err != nil || r.First != c.first || (r.Broken == 0) != (c.want == "") || !strings.HasPrefix(r.Problem, c.want) || c.want == "" && r.Last != c.last {
				t.Errorf("%s, %s: %+v, %v", what, form, r.Report, err)
			}
			if c.first > 1 && r.Before == "" {
				t.Errorf("%s, %s: it does not say that records before are not there", what, form)
			}
		}
	}
	whole := bytes.Join(lines, nil)
	for content, want := range map[string]string{
		string(whole[:len(whole)-10]):               "the file ends in the middle of record 12",
		string(lines[0]) + "x\n" + string(lines[1]): "record 2 cannot be read",
		string(lines[0]) + " " + string(lines[1]):   "record 2 was changed",
		"": "holds no record", "x": "holds no records", "{}": "holds no records", `{"records":[]}`: "holds no records", "\x00\n": "holds no records",
	} {
		file := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := VerifyFile(file)
		if said := r.Problem + errText(err); !strings.Contains(said, want) {
			t.Errorf("%.60q: %q, want %q", content, said, want)
		}
	}
	if _, err := VerifyFile(t.TempDir()); err == nil {
		t.Error("an empty folder is whole")
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
