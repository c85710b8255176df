package store_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/penstock-gateway/penstock/store"
)

// intruder is somebody who can write to the etcd of a store, and has no seal key.
type intruder struct {
	t      *testing.T
	client *clientv3.Client
	prefix string
}

func (i intruder) get(key string) string {
	i.t.Helper()
	resp, err := i.client.Get(i.t.Context(), i.prefix+key)
	if err != nil || len(resp.Kvs) != 1 {
		i.t.Fatalf("%s: %v, %v", key, resp, err)
	}
	return string(resp.Kvs[0].Value)
}

func (i intruder) put(key, value string) {
	i.t.Helper()
	if _, err := i.client.Put(i.t.Context(), i.prefix+key, value); err != nil {
		i.t.Fatal(err)
	}
}

func (i intruder) remove(prefix string) {
	i.t.Helper()
	resp, err := i.client.Delete(i.t.Context(), i.prefix+prefix, clientv3.WithPrefix())
	if err != nil || resp.Deleted == 0 {
		i.t.Fatalf("%s: nothing was removed, %v", prefix, err)
	}
}

// below are all values below a prefix, which a later put of the intruder brings back.
func (i intruder) below(prefix string) map[string]string {
	i.t.Helper()
	resp, err := i.client.Get(i.t.Context(), i.prefix+prefix, clientv3.WithPrefix())
	if err != nil {
		i.t.Fatal(err)
	}
	out := map[string]string{}
	for _, kv := range resp.Kvs {
		out[strings.TrimPrefix(string(kv.Key), i.prefix)] = string(kv.Value)
	}
	return out
}

func putState(t *testing.T, s store.Store, key, value string) {
	t.Helper()
	if err := s.PutState(t.Context(), key, []byte(value)); err != nil {
		t.Fatal(err)
	}
}

func readState(t *testing.T, s store.Store, prefix string) store.StateValues {
	t.Helper()
	got, err := s.ReadState(t.Context(), prefix)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func damagedKeys(v store.StateValues) []string {
	var out []string
	for _, d := range v.Damaged {
		out = append(out, d.Key)
	}
	return out
}

// TestIntruder has somebody who can write to the etcd, and has no seal key, try to give
// somebody a right: what he writes is not used and is named, the rest is as it was, and so it
// stays after a repair.
func TestIntruder(t *testing.T) {
	t.Parallel()
	const role, token, claim, revoked, runner = "access/role/ops", "access/token/old", "join/claim/x/y", "revoked/identity/edge", "runners/r"
	for what, c := range map[string]struct {
		do func(i intruder, before map[string]string)
		// damaged are the keys that are named, after what may be there, kept those that are
		// there after a repair.
		damaged, kept []string
		// all tells that nothing of the part of damaged is used.
		all bool
	}{
		"a role of his own": {do: func(i intruder, _ map[string]string) { i.put("/s/access/role/mine", `{"name":"mine"}`) }, damaged: []string{"access/role/mine"}},
		"a role with a tag of his own": {do: func(i intruder, _ map[string]string) {
			i.put("/s/access/role/mine", "\x01ps1"+strings.Repeat("x", 32)+`{"name":"mine"}`)
		}, damaged: []string{"access/role/mine"}},
		"a role cut off": {do: func(i intruder, _ map[string]string) { i.put("/s/"+role, "\x01ps1") }, damaged: []string{role}},
		"one changed byte": {do: func(i intruder, _ map[string]string) {
			v := i.get("/s/" + role)
			i.put("/s/"+role, v[:len(v)-1]+"X")
		}, damaged: []string{role}},
		"the value of another key": {do: func(i intruder, _ map[string]string) { i.put("/s/access/role/mine", i.get("/s/"+role)) }, damaged: []string{"access/role/mine"}},
		"a token that was removed": {do: func(i intruder, b map[string]string) { i.put("/s/"+token, b["/s/"+token]) }, damaged: []string{token}},
		"a role as it was":         {do: func(i intruder, b map[string]string) { i.put("/s/"+role, b["/s/"+role]) }, damaged: []string{role}},
		"no revocation":            {do: func(i intruder, _ map[string]string) { i.remove("/s/" + revoked) }, damaged: []string{revoked}, kept: []string{revoked}},
		"an empty revocation list": {do: func(i intruder, _ map[string]string) { i.remove("/s/revoked/") }, damaged: []string{revoked}, kept: []string{revoked}},
		"no revocation, and no list": {do: func(i intruder, _ map[string]string) { i.remove("/s/revoked/"); i.remove("/i/revoked/") },
			damaged: []string{"revoked/"}, all: true},
		"a list of his own": {do: func(i intruder, _ map[string]string) {
			for key := range i.below("/i/revoked/") {
				i.put(key, `{"changes":9}`)
			}
		}, damaged: []string{"revoked/", revoked}, kept: []string{revoked}, all: true},
		"the lists of another part": {do: func(i intruder, _ map[string]string) {
			for key := range i.below("/i/revoked/") {
				i.put(key, i.get(strings.Replace(key, "revoked", "join", 1)))
			}
		}, damaged: []string{"revoked/", revoked}, kept: []string{revoked}, all: true},
		"a join token that was used": {do: func(i intruder, _ map[string]string) { i.remove("/s/" + claim) }, damaged: []string{claim}, kept: []string{claim}},
		"instances of his own":       {do: func(i intruder, _ map[string]string) { i.put("/s/"+runner, "x") }, damaged: []string{runner}},
		"everything as it was before": {do: func(i intruder, b map[string]string) {
			for key, v := range b {
				i.put(key, v)
			}
		}, damaged: []string{"access/", "join/", "revoked/", role, token}, all: true},
	} {
		t.Run(what, func(t *testing.T) {
			o := external.options(t)
			s := open(t, o)
			i := intruder{t, store.Client(s), o.Prefix}
			putState(t, s, role, "narrow at first, then wide")
			putState(t, s, token, "revoked later")
			before := i.below("/")
			putState(t, s, role, "narrow again")
			if err := s.DeleteState(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			putState(t, s, claim, "used")
			putState(t, s, revoked, "revoked")
			putState(t, s, runner, "1")
			readState(t, s, "")
			good := readState(t, s, "").Values
			c.do(i, before)

			got := readState(t, s, "")
			for _, key := range c.damaged {
				if !slices.Contains(damagedKeys(got), key) {
					t.Errorf("%s is not named in %+v", key, got.Damaged)
				}
			}
			for key, v := range got.Values {
				if string(v) != string(good[key]) {
					t.Errorf("%s is %q, was %q", key, v, good[key])
				}
			}
			for key := range good {
				part, _, _ := strings.Cut(key, "/")
				if got.Values[key] == nil && !slices.Contains(c.damaged, key) && !(c.all && slices.Contains(c.damaged, part+"/")) {
					t.Errorf("%s is lost, too", key)
				}
			}
			// What is read of one part alone is the same.
			for _, key := range c.damaged {
				if one := readState(t, s, key); one.Values[key] != nil || len(one.Damaged) == 0 {
					t.Errorf("%s alone: %+v", key, one)
				}
				if strings.HasSuffix(key, "/") {
					continue
				}
				if one, err := s.ReadKey(t.Context(), key); err != nil || len(one.Values) > 0 || !slices.Contains(damagedKeys(one), key) {
					t.Errorf("%s by its key: %+v, %v", key, one, err)
				}
			}
			for key, v := range got.Values {
				if one, err := s.ReadKey(t.Context(), key); err != nil || len(one.Values) != 1 || string(one.Values[key]) != string(v) || len(one.Damaged) > 0 {
					t.Errorf("%s by its key: %+v, %v", key, one, err)
				}
			}
			repaired(t, o, s, c.damaged, c.kept, good)
		})
	}
}

// repaired checks, and has mended, a store with damage.
func repaired(t *testing.T, o store.Options, s store.Store, damaged, kept []string, good map[string][]byte) {
	t.Helper()
	o.SealKey, o.Logger = sealKey, quiet
	report, err := store.Check(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	named := fmt.Sprint(report.Findings)
	for _, key := range damaged {
		// An older list is known to those only who have seen the newer one.
		if !strings.Contains(named, key) && !strings.Contains(t.Name(), "as_it_was_before") {
			t.Errorf("store check does not name %s: %s", key, named)
		}
	}
	if report, err = store.Mend(t.Context(), o); err != nil || len(report.Findings) > 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if report, err = store.Check(t.Context(), o); err != nil || len(report.Findings) > 0 {
		t.Errorf("after the repair: %+v, %v", report, err)
	}
	if strings.Contains(t.Name(), "as_it_was_before") {
		return
	}
	got := readState(t, s, "")
	for _, key := range damaged {
		if v, there := got.Values[key]; there != slices.Contains(kept, key) || len(v) > 0 && string(v) != string(good[key]) {
			t.Errorf("after the repair %s is %q, there: %v", key, v, there)
		}
	}
	if len(got.Damaged) > 0 {
		t.Errorf("after the repair: %+v", got.Damaged)
	}
}

// TestReplay shows what an intruder without the seal key can do all the same: whoever puts
// back values and lists together, all as they were, is believed by processes that start
// afterwards. One that has seen what was newer notices it, as TestIntruder shows.
func TestReplay(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	i := intruder{t, store.Client(s), o.Prefix}
	before := i.below("/i/revoked/")
	putState(t, s, "revoked/identity/edge", "revoked")
	i.remove("/s/revoked/")
	for key, v := range before {
		i.put(key, v)
	}
	if got := readState(t, s, "revoked/"); len(got.Damaged) == 0 {
		t.Error("a process that knows better believes it")
	}
	if got := readState(t, open(t, o), "revoked/"); len(got.Damaged) > 0 || len(got.Values) > 0 {
		t.Errorf("%+v: docs/security.md says otherwise", got)
	}
}

// TestWriteMends: a new value takes the place of a damaged one, and its removal removes it.
// A list that is damaged is mended by a repair only: until then nothing is written below it.
func TestWriteMends(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	i := intruder{t, store.Client(s), o.Prefix}
	const a, b = "access/role/a", "access/role/b"
	for _, key := range []string{a, b} {
		putState(t, s, key, "1")
		i.put("/s/"+key, "x")
	}
	putState(t, s, a, "2")
	if err := s.DeleteState(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if got := readState(t, s, "access/"); len(got.Damaged) > 0 || len(got.Values) != 1 || string(got.Values[a]) != "2" {
		t.Errorf("%+v", got)
	}
	i.remove("/i/access/")
	err := s.PutState(t.Context(), a, []byte("3"))
	if !errors.Is(err, store.ErrState) || !strings.Contains(err.Error(), "penstock store repair") {
		t.Error(err)
	}
	if err := s.DeleteState(t.Context(), a); !errors.Is(err, store.ErrState) {
		t.Error(err)
	}
	putState(t, s, "revoked/serial/1", "the others can be written")
}

// TestAdopt opens stores of an earlier version, which had neither tags nor lists.
func TestAdopt(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.SealKey, o.Logger, o.Prefix = sealKey, quiet, "/adopt-"+b.name
			s, err := store.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			i := intruder{t, store.Client(s), o.Prefix}
			i.remove("/i/")
			want := map[string]string{"revoked/identity/edge": "\n\x03why", "access/role/ops": `{"name":"ops"}`, "runners/r": "zzz", "access/token/empty": ""}
			for key, v := range want {
				i.put("/s/"+key, v)
			}
			i.put("/pin/ca", "abc")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, err = store.Open(t.Context(), o)
			if b.name == "external" {
				if !errors.Is(err, store.ErrState) || !strings.Contains(err.Error(), "--adopt-state") {
					t.Fatalf("it was taken over, or the error does not say how: %v", err)
				}
				o.AdoptState = true
				s, err = store.Open(t.Context(), o)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			got := readState(t, s, "")
			values := map[string]string{}
			for key, v := range got.Values {
				values[key] = string(v)
			}
			if len(got.Damaged) > 0 || !maps.Equal(values, want) {
				t.Errorf("%q, damaged %+v", values, got.Damaged)
			}
			if v, err := s.Pin(t.Context(), "ca", ""); v != "abc" || err != nil {
				t.Errorf("pin %q, %v", v, err)
			}
			// Once only: what comes without a tag later is not taken over.
			intruder{t, store.Client(s), o.Prefix}.put("/s/access/role/mine", "{}")
			if got := readState(t, s, ""); got.Values["access/role/mine"] != nil {
				t.Error("it was taken over later")
			}
		})
	}
}

// TestListsRemoved: somebody removes all lists of an external etcd, as if an earlier version had
// written what is there, and adds a role. The control plane starts, and lets nobody in by it.
func TestListsRemoved(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	putState(t, s, "access/role/ops", "1")
	i := intruder{t, store.Client(s), o.Prefix}
	i.put("/s/access/role/mine\x1b[2J", "{}")
	i.remove("/i/")
	got := readState(t, open(t, o), "")
	if len(got.Values) > 0 || !slices.Contains(damagedKeys(got), "access/") || !slices.Contains(damagedKeys(got), "revoked/") {
		t.Errorf("%+v", got)
	}
	o.SealKey, o.Logger = sealKey, quiet
	r, err := store.Mend(t.Context(), o)
	if err != nil || strings.Contains(strings.Join(r.Mended, ""), "\x1b") {
		t.Errorf("%q, %v", r.Mended, err)
	}
	if got := readState(t, open(t, o), ""); len(got.Damaged) > 0 || len(got.Values) != 1 || string(got.Values["access/role/ops"]) != "1" {
		t.Errorf("after a repair: %+v", got)
	}
}

// TestPinForged: a pin of somebody without the seal key is refused.
func TestPinForged(t *testing.T) {
	t.Parallel()
	o := external.options(t)
	s := open(t, o)
	if _, err := s.Pin(t.Context(), "ca", "mine"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pin(t.Context(), "other", "his"); err != nil {
		t.Fatal(err)
	}
	i := intruder{t, store.Client(s), o.Prefix}
	for _, forged := range []string{"his", i.get("/pin/other")} {
		i.put("/pin/ca", forged)
		if v, err := s.Pin(t.Context(), "ca", ""); !errors.Is(err, store.ErrState) {
			t.Errorf("pin %q, %v", v, err)
		}
		if err := s.Repin(t.Context(), "ca", "his", "other"); err == nil {
			t.Error("it was replaced")
		}
	}
	o.SealKey, o.Logger = sealKey, quiet
	if r, err := store.Mend(context.Background(), o); err != nil || len(r.Mended) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if v, err := s.Pin(t.Context(), "ca", "mine"); v != "mine" || err != nil {
		t.Errorf("pin %q, %v", v, err)
	}
}

// TestStateWithoutKey: without the seal key run-time state is neither used nor, least of all,
// mended away.
func TestStateWithoutKey(t *testing.T) {
	t.Parallel()
	o := checkable(t)
	s := open(t, o)
	putState(t, s, "access/role/ops", "1")
	closeStore(t, s)
	bare := o
	bare.SealKey = nil
	for what, of := range map[string]func(context.Context, store.Options) (*store.Report, error){"check": store.Check, "mend": store.Mend} {
		if r, err := of(t.Context(), bare); !errors.Is(err, store.ErrSealKey) && (err != nil || len(r.Findings) != 1 || !r.Findings[0].State) {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	s, err := store.Open(t.Context(), bare)
	if err != nil {
		t.Fatal(err)
	}
	_, read := s.State(t.Context(), "access/")
	_, pin := s.Pin(t.Context(), "ca", "mine")
	for what, err := range map[string]error{
		"read": read, "put": s.PutState(t.Context(), "token", nil), "delete": s.DeleteState(t.Context(), "access/role/ops"),
		"pin": pin, "repin": s.Repin(t.Context(), "ca", "authority", "mine"),
	} {
		if !errors.Is(err, store.ErrSealKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	closeStore(t, s)
	if got := readState(t, open(t, o), ""); len(got.Damaged) > 0 || string(got.Values["access/role/ops"]) != "1" {
		t.Errorf("%+v", got)
	}
}
