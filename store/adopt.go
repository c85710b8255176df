package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// allLists are the lists of every listed part.
func allLists() []list { return listsOf("") }

// openState makes the lists of run-time state in a new store. One that an earlier version
// wrote has none: what is in it is taken over where only those who also have the seal key
// can have written it, in the files of an embedded etcd, and else when that was asked for.
func (s *etcdStore) openState(ctx context.Context) error {
	ctx, end, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer end()
	if s.keyless {
		return nil // whoever asks for it is told
	}
	lists, err := s.get(ctx, s.key("i", ""), prefixEnd(s.key("i", "")), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
	if err != nil || len(lists.Kvs) > 0 {
		return err
	}
	used, err := s.used(ctx)
	if err != nil {
		return err
	}
	if !used {
		return s.putLists(ctx, map[list]listing{})
	}
	if s.embedded == nil && !s.opts.AdoptState {
		tagged, err := s.someTagged(ctx)
		if err != nil || tagged {
			return err // not of an earlier version: somebody removed the lists, which is damage
		}
		return fmt.Errorf("store: %w: %s has roles, tokens and revocations that an earlier version wrote there, so that whoever can write to it may have changed them. "+
			"Stop every control plane, then take them over with `penstock store repair --adopt-state` and the same flags; look at them afterwards", ErrState, s.where())
	}
	return s.adoptState(ctx)
}

// someTagged reports whether any run-time state has a tag that is right.
func (s *etcdStore) someTagged(ctx context.Context) (some bool, err error) {
	err = s.eachState(ctx, "", 0, func(key string, stored []byte) {
		_, _, bad := s.seal.untag(s.stateKey(key), stored)
		some = some || bad == nil
	})
	return some, err
}

// used reports whether the store has a revision or run-time state.
func (s *etcdStore) used(ctx context.Context) (bool, error) {
	for _, prefix := range []string{"s", "r"} {
		resp, err := s.get(ctx, s.key(prefix, ""), prefixEnd(s.key(prefix, "")), clientv3.WithKeysOnly(), clientv3.WithLimit(1))
		if err != nil || len(resp.Kvs) > 0 {
			return true, err
		}
	}
	return false, nil
}

// putLists writes all lists, those of a store that has none.
func (s *etcdStore) putLists(ctx context.Context, of map[list]listing) error {
	var none []clientv3.Cmp
	var puts []clientv3.Op
	for _, l := range allLists() {
		content, err := s.encodeListing(l, of[l])
		if err != nil {
			return err
		}
		none = append(none, clientv3.Compare(clientv3.CreateRevision(s.listKey(l)), "=", 0))
		puts = append(puts, clientv3.OpPut(s.listKey(l), content))
	}
	// Another process may have made them at the same moment.
	_, err := s.txn(ctx, none, puts, nil)
	return err
}

// adoptState gives tags to run-time state and pins that have none, and lists what is there. The
// lists come last, so that a process that ends in between begins again.
func (s *etcdStore) adoptState(ctx context.Context) error {
	of := map[list]listing{}
	var err error
	give := func(at string, stored []byte) (tag string) {
		value, tag, bad := s.seal.untag(at, stored)
		if errors.Is(bad, errNoTag) {
			value, bad = stored, nil
			tag = listedForm(s.seal.tag(at, value))
			_, put := do(s, ctx, func(ctx context.Context) (*clientv3.PutResponse, error) {
				return s.client.Put(ctx, at, s.seal.tagged(at, value))
			})
			err = errors.Join(err, put)
		}
		if bad != nil {
			return ""
		}
		return tag
	}
	n := 0
	each := s.eachState(ctx, "", 0, func(key string, stored []byte) {
		n++
		tag := give(s.stateKey(key), stored)
		l, listed := listOf(key)
		if !listed || tag == "" {
			return
		}
		if of[l].Tags == nil {
			of[l] = listing{Tags: map[string]string{}}
		}
		of[l].Tags[key] = tag
	})
	pins, pinErr := s.pins(ctx)
	if err := errors.Join(each, pinErr); err != nil {
		return err
	}
	for _, p := range pins {
		give(string(p.Key), p.Value)
	}
	if err != nil {
		return err
	}
	s.opts.Logger.Warn("store: run-time state of an earlier version was taken over", "values", n)
	return s.putLists(ctx, of)
}

// pins are all pins.
func (s *etcdStore) pins(ctx context.Context) ([]*mvccpb.KeyValue, error) {
	resp, err := s.get(ctx, s.key("pin", ""), prefixEnd(s.key("pin", "")))
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// stateFindings are what is damaged of run-time state and pins.
func (s *etcdStore) stateFindings(ctx context.Context) ([]Finding, error) {
	if err := s.haveTags(); err != nil {
		return []Finding{{What: "what there is of roles, tokens and revocations", Detail: err.Error(), State: true}}, nil
	}
	read, err := s.readState(ctx, "")
	if err != nil {
		return nil, err
	}
	var out []Finding
	for _, d := range read.Damaged {
		out = append(out, Finding{What: d.name(), Detail: d.Detail, State: true})
	}
	pins, err := s.pins(ctx)
	for _, p := range pins {
		if _, _, err := s.seal.untag(string(p.Key), p.Value); err != nil {
			out = append(out, Finding{What: "the pin " + strings.TrimPrefix(string(p.Key), s.key("pin", "")), Detail: err.Error(), State: true})
		}
	}
	return out, err
}

// name is what is damaged, for people: somebody who means harm may have chosen the key.
func (d StateDamage) name() string {
	key := d.Key
	if strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) }) {
		key = strconv.QuoteToASCII(key)
	}
	if d.List {
		return "the run-time state below " + key
	}
	return "the run-time state " + key
}

// refusing are the parts in which a value refuses something: what is damaged there is kept, without
// a content. A damaged value elsewhere gave somebody something, and goes.
var refusing = []string{"revoked/", "join/claim/"}

// mendState takes away what is damaged of run-time state, so that nobody gets a right by
// it, and returns what it did, in words.
func (s *etcdStore) mendState(ctx context.Context) ([]string, error) {
	done, err := s.mendLists(ctx)
	if err != nil {
		return done, err
	}
	read, err := s.readState(ctx, "")
	if err != nil {
		return done, err
	}
	for _, d := range read.Damaged {
		keep := slices.ContainsFunc(refusing, func(p string) bool { return strings.HasPrefix(d.Key, p) })
		how := "was removed: it gives nobody a right"
		if keep {
			err, how = s.putState(ctx, d.Key, nil), "stays in force, without its reason"
		} else {
			err = s.deleteState(ctx, d.Key)
		}
		if err != nil {
			return done, err
		}
		done = append(done, fmt.Sprintf("%s was damaged (%s), and %s", d.name(), d.Detail, how))
	}
	pins, err := s.pins(ctx)
	for _, p := range pins {
		if _, _, bad := s.seal.untag(string(p.Key), p.Value); bad != nil {
			_, gone := do(s, ctx, func(ctx context.Context) (*clientv3.DeleteResponse, error) {
				return s.client.Delete(ctx, string(p.Key))
			})
			err = errors.Join(err, gone)
			done = append(done, fmt.Sprintf("the pin %s was damaged (%v), and was removed: the next start sets it", strings.TrimPrefix(string(p.Key), s.key("pin", "")), bad))
		}
	}
	return done, err
}

// mendLists makes lists that are damaged anew of the values that match their tags.
func (s *etcdStore) mendLists(ctx context.Context) (done []string, err error) {
	lists, at, err := s.readLists(ctx, allLists())
	if err != nil {
		return nil, err
	}
	anew := map[list]listing{}
	parts := map[string]error{}
	for l, c := range lists {
		if c.err != nil {
			anew[l], parts[l.part] = listing{Changes: max(c.Changes, s.seen(l)) + 1, Tags: map[string]string{}}, c.err
		}
	}
	if len(anew) == 0 {
		return nil, nil
	}
	err = s.eachState(ctx, "", at, func(key string, stored []byte) {
		l, listed := listOf(key)
		if _, bad := anew[l]; !listed || !bad {
			return
		}
		// What does not match its tag is listed under none, and mended after this.
		_, tag, _ := s.seal.untag(s.stateKey(key), stored)
		anew[l].Tags[key] = tag
	})
	if err != nil {
		return nil, err
	}
	for l, c := range anew {
		content, err := s.encodeListing(l, c)
		if err != nil {
			return done, err
		}
		if _, err := do(s, ctx, func(ctx context.Context) (*clientv3.PutResponse, error) {
			return s.client.Put(ctx, s.listKey(l), content)
		}); err != nil {
			return done, err
		}
	}
	for _, part := range listedParts {
		if bad := parts[part]; bad != nil {
			done = append(done, fmt.Sprintf("below %s: %v; it was made anew of the values that are there. What was missing is not known any more: look whether something has to be revoked again", part, bad))
		}
	}
	return done, nil
}
