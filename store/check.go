package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/etcd/server/v3/storage/wal"

	"github.com/penstock-gateway/penstock/internal/flock"
)

// Finding is one thing that is wrong with a store.
type Finding struct {
	// What is damaged: a resource, a part of the tree, a record, a page.
	What string
	// Detail says what is wrong with it.
	Detail string
	// Revisions that it is part of; empty for all, or none.
	Revisions []int64
	// Head tells that the newest revision needs it.
	Head bool
	// Structure tells that the store cannot be opened with it.
	Structure bool
	// Resource tells that What is the name of a resource.
	Resource bool
	// State tells that it is run-time state: it gives nobody a right while it is damaged.
	State bool
}

// Report is what a check found.
type Report struct {
	Findings []Finding
	// Head is the newest revision, Revisions how many were read.
	Head      Revision
	Revisions int
	// Mended says what Mend did about damaged run-time state, one line each.
	Mended []string
}

// Check reads everything that a store holds and changes nothing but what opening it does.
// Nobody else may have an embedded one open.
func Check(ctx context.Context, o Options) (*Report, error) {
	o.KeepDamage, o.MaintenanceInterval = true, -1
	r := &Report{}
	if len(o.Endpoints) == 0 {
		if err := r.checkFiles(o.DataDir); err != nil || len(r.Findings) > 0 {
			return r, err
		}
	}
	s, err := Open(ctx, o)
	if err != nil {
		return r, err
	}
	if err = r.checkContent(ctx, s); err == nil {
		var state []Finding
		state, err = s.(*etcdStore).stateFindings(ctx)
		r.Findings = append(r.Findings, state...)
	}
	return r, errors.Join(err, s.Close())
}

// checkFiles looks at the files of an embedded etcd.
func (r *Report) checkFiles(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "etcd", "member")); err != nil {
		return fmt.Errorf("store: there is no store in %s: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer func() { _ = flock.Close(lock) }()
	if err := readable(filepath.Join(dir, "etcd")); err != nil {
		return trouble(err)
	}
	applied, err := checkDatabase(filepath.Join(dir, "etcd", "member", "snap", "db"))
	for _, e := range unjoin(err) {
		bad, ok := errors.AsType[*PageError](e)
		if !ok {
			return e
		}
		r.Findings = append(r.Findings, Finding{What: fmt.Sprintf("page %d of %s", bad.Page, bad.File), Detail: bad.Detail, Structure: true})
	}
	if log := filepath.Join(dir, "etcd", "member", "wal"); wal.Exist(log) {
		if err := checkLog(log, applied); err != nil {
			r.Findings = append(r.Findings, Finding{What: "the log in " + log, Detail: strings.TrimSuffix(err.Error(), "; "+damagedFiles), Structure: true})
		}
	}
	return nil
}

func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok {
		return all.Unwrap()
	}
	return []error{err}
}

// checkContent reads all revisions, the newest first, each by what differs from the one
// before it.
func (r *Report) checkContent(ctx context.Context, s Store) error {
	var err error
	if r.Head, err = s.Head(ctx); err != nil {
		return r.add(err, 0, true)
	}
	for before := int64(0); ; {
		page, err := s.List(ctx, before, maxList)
		if err != nil {
			return err
		}
		for _, rev := range page {
			before, r.Revisions = rev.Number, r.Revisions+1
			if rev.Damaged != "" {
				r.Findings = append(r.Findings, Finding{What: fmt.Sprintf("the record of revision %d", rev.Number), Detail: rev.Damaged, Revisions: []int64{rev.Number}})
				continue
			}
			if err := r.checkRevision(ctx, s, rev.Number); err != nil {
				return err
			}
		}
		if len(page) < maxList {
			return nil
		}
	}
}

// checkRevision reads a revision; of those below the head only what the one above has not.
func (r *Report) checkRevision(ctx context.Context, s Store, number int64) error {
	head := number == r.Head.Number
	var err error
	if head {
		_, err = s.Load(ctx, number)
	} else if _, err = s.Diff(ctx, number+1, number); err != nil {
		// What fails may be of the other revision.
		_, err = s.Load(ctx, number)
	}
	return r.add(err, number, head)
}

// add notes what an error says is damaged; other errors are returned.
func (r *Report) add(err error, number int64, head bool) error {
	if err == nil || errors.Is(err, ErrNotFound) {
		return nil
	}
	damage, many := errors.AsType[*DamageError](err)
	if !many {
		one, ok := errors.AsType[*CorruptError](err)
		if !ok {
			return err
		}
		damage = &DamageError{[]*CorruptError{one}}
	}
	for _, bad := range damage.Objects {
		what := bad.Name
		if many {
			what += " (sha256 " + bad.Hash + ")"
		}
		if i := slices.IndexFunc(r.Findings, func(f Finding) bool { return f.What == what }); i >= 0 {
			r.Findings[i].Revisions = append(r.Findings[i].Revisions, number)
			r.Findings[i].Head = r.Findings[i].Head || head
			continue
		}
		r.Findings = append(r.Findings, Finding{What: what, Detail: bad.Detail, Revisions: []int64{number}, Head: head, Resource: many})
	}
	return nil
}

// Mend has a store mend what it can: everything is read, and what is damaged is put back
// where its content is found again; of run-time state what is damaged goes, or stays in force
// where it refuses something. The report has what is left.
func Mend(ctx context.Context, o Options) (*Report, error) {
	o.KeepDamage, o.MaintenanceInterval = false, -1
	s, err := Open(ctx, o)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err = r.checkContent(ctx, s); err == nil {
		if s := s.(*etcdStore); s.keyless {
			var state []Finding
			state, err = s.stateFindings(ctx)
			r.Findings = append(r.Findings, state...)
		} else {
			r.Mended, err = s.mendState(ctx)
		}
	}
	return r, errors.Join(err, s.Close())
}
