package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/penstock-gateway/penstock/store"
	"github.com/penstock-gateway/penstock/store/storetest"
)

// TestNewerFormat: a store in a form that is not known is refused as what it is, by all that
// open it, and nothing in it changes. One without a note gets it.
func TestNewerFormat(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			o := b.options(t)
			o.SealKey, o.Logger = sealKey, quiet
			s, err := store.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Commit(t.Context(), 0, storetest.Routes(0, 3, "a"), store.Info{}); err != nil {
				t.Fatal(err)
			}
			client, key := store.Client(s), "/penstock/format"
			if o.Prefix != "" {
				key = o.Prefix + "/format"
			}
			got, err := client.Get(t.Context(), key)
			if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != strconv.Itoa(store.Format) {
				t.Errorf("the note of the format: %v, %v", got, err)
			}
			if _, err := client.Put(t.Context(), key, strconv.Itoa(store.Format+1)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			refused := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, store.ErrNewer) || !strings.Contains(err.Error(), fmt.Sprintf("format %d", store.Format+1)) {
					t.Errorf("%s: %v", what, err)
				}
			}
			_, err = store.Open(t.Context(), o)
			refused("open", err)
			_, err = store.Check(t.Context(), o)
			refused("check", err)
			if o.DataDir != "" {
				_, err = store.Rebuild(t.Context(), o, o.DataDir, filepath.Join(t.TempDir(), "new"))
				refused("rebuild", err)
			}
		})
	}
}

// TestNewerResource: a resource with a field that is not known is told of as written by a
// newer version, with the field; the others are read.
func TestNewerResource(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openEmbedded(t, dir)
	changes := storetest.Routes(0, 3, "a")
	newer := changes[1].Resource.GetRoute()
	newer.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 20000, protowire.VarintType), 1))
	if _, err := s.Commit(t.Context(), 0, changes, store.Info{}); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load(t.Context(), 1)
	damage, ok := errors.AsType[*store.DamageError](err)
	if len(got) != 2 || !ok || len(damage.Objects) != 1 || !errors.Is(err, store.ErrNewer) {
		t.Fatalf("%d resources, %v", len(got), err)
	}
	if one := damage.Objects[0]; one.Name != newer.GetName() || !one.Newer || !strings.Contains(one.Detail, "route.#20000") {
		t.Errorf("%+v", one)
	}
}
