package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/gateway"
	"github.com/penstock-gateway/penstock/internal/pki"
	"github.com/penstock-gateway/penstock/store"
)

// errDamaged is a store that is not whole.
var errDamaged = errors.New("the store is damaged")

func newStoreCommand() *cobra.Command {
	c := &cobra.Command{Use: "store", Short: "Check and repair the store of a control plane that is stopped"}
	c.AddCommand(newStoreCheckCommand(), newStoreRepairCommand())
	return c
}

func newStoreCheckCommand() *cobra.Command {
	var f controlFlags
	c := &cobra.Command{
		Use:   "check",
		Short: "Read everything that the store holds, and say what is damaged",
		Long: "Reads pages, log, records and every object of every revision, and compares them with their hashes. It repairs\n" +
			"nothing. The exit code is 0 when all is whole, and 3 when something is damaged. The embedded store must not be in use.",
		Example: "  penstock store check",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.fillDefaults()
			o, err := f.storeOptions(slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			report, err := store.Check(cmd.Context(), o)
			if errors.Is(err, store.ErrSealKey) && len(f.etcd) == 0 {
				return fmt.Errorf("the pages and the log of the store are whole; what is in them cannot be read without the seal key that it was made with, so bring back %s from a backup: %w",
					f.sealKey, err)
			}
			if err != nil {
				return err
			}
			whole := len(report.Findings) == 0
			if whole || !report.Findings[0].Structure {
				keys, err := f.checkAuthority(cmd.Context(), o)
				if err != nil {
					return err
				}
				if keys != "" {
					whole = false
					fmt.Fprintln(cmd.OutOrStdout(), keys)
				}
			}
			printFindings(cmd.OutOrStdout(), report, f.repairCommand())
			if !whole {
				return errDamaged
			}
			return nil
		},
	}
	f.addStoreFlags(c.Flags())
	return c
}

// checkAuthority says what is wrong with the certificate authority of a store; "" when
// nothing is.
func (f *controlFlags) checkAuthority(ctx context.Context, o store.Options) (string, error) {
	o.KeepDamage, o.MaintenanceInterval = true, -1
	st, err := store.Open(ctx, o)
	if err != nil {
		return "", err
	}
	pinned, err := st.Pin(ctx, caPin, "")
	if errors.Is(err, store.ErrState) {
		return "", st.Close() // it is among the findings
	}
	if err := errors.Join(err, st.Close()); err != nil || pinned == "" {
		return "", err
	}
	ca, err := pki.LoadCA(f.pkiDir)
	if err != nil {
		return fmt.Sprintf("certificate authority: %v; the store knows the one with SHA-256 %s. %s", err, pinned, mendAuthority(pinned)), nil
	}
	sum := ca.Hash()
	if got := hex.EncodeToString(sum[:]); got != pinned {
		return fmt.Sprintf("certificate authority: %s has SHA-256 %s, the store knows the one with %s. %s", f.pkiDir, got, pinned, mendAuthority(pinned)), nil
	}
	return "", nil
}

// printFindings prints one line for each finding, and a summary.
func printFindings(w io.Writer, r *store.Report, repair string) {
	for _, f := range r.Findings {
		where := ""
		if n := len(f.Revisions); n > 0 {
			where = fmt.Sprintf(" of revision %d", f.Revisions[0])
			if n > 1 {
				where = fmt.Sprintf(" of revisions %d to %d", f.Revisions[n-1], f.Revisions[0])
			}
			if strings.Contains(f.What, "revision") {
				where = ""
			}
		}
		fmt.Fprintf(w, "%s%s is damaged: %s\n", f.What, where, f.Detail)
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(w, "the store is whole: %d revisions up to %d, %d resources\n", r.Revisions, r.Head.Number, r.Head.Resources)
		return
	}
	fmt.Fprintf(w, "%d damaged; mend what can be mended with: %s\n", len(r.Findings), repair)
}

// repairCommand is the command that repairs the store of these flags.
func (f *controlFlags) repairCommand() string {
	c := "penstock store repair --data-dir " + f.dataDir
	if len(f.etcd) > 0 {
		c += " --etcd-endpoints " + strings.Join(f.etcd, ",") + " --etcd-prefix " + f.etcdPrefix
	}
	return c
}

// repairFlags are those of `penstock store repair`.
type repairFlags struct {
	controlFlags
	restore, remove string
	from, rollback  int64
	adopt           bool
}

func newStoreRepairCommand() *cobra.Command {
	var f repairFlags
	c := &cobra.Command{
		Use:   "repair",
		Short: "Mend what can be mended, after keeping a copy of the store",
		Long: "Keeps the files of the embedded store as they are beside it, and mends: content that is found again by its hash, with\n" +
			"one bit changed back or in the log, is put back; damaged files are made anew from all that can be read in them.\n" +
			"What is lost stays lost until you say what to do: --restore takes a resource from an older revision (look what it\n" +
			"opens), --delete gives it up, --rollback makes an older revision the newest. A damaged role, binding or token is\n" +
			"removed, and who was revoked stays so: what was done is said. The exit code is 3 when the newest revision is still\n" +
			"damaged. Of an external etcd, of which no copy is kept, stop every control plane first; files and lost resources\n" +
			"are repaired by its own tools or from a backup.",
		Example: "  penstock store repair\n  penstock store repair --restore routes/shop --from 41",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	f.addStoreFlags(c.Flags())
	c.Flags().StringVar(&f.restore, "restore", "", "resource to take from revision --from")
	c.Flags().Int64Var(&f.from, "from", 0, "revision for --restore")
	c.Flags().StringVar(&f.remove, "delete", "", "resource to give up")
	c.Flags().Int64Var(&f.rollback, "rollback", 0, "revision to make the newest")
	c.Flags().BoolVar(&f.adopt, "adopt-state", false, "take over the roles, tokens and revocations that an earlier version wrote to an external etcd; whoever can write to it may have changed them, so look at them afterwards")
	c.MarkFlagsRequiredTogether("restore", "from")
	c.MarkFlagsMutuallyExclusive("restore", "delete", "rollback")
	return c
}

func (f *repairFlags) run(ctx context.Context, w io.Writer) error {
	f.fillDefaults()
	o, err := f.storeOptions(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if len(f.etcd) > 0 {
		return f.runExternal(ctx, w, o)
	}
	report, err := store.Check(ctx, o)
	if err != nil {
		return err
	}
	asked := f.restore != "" || f.remove != "" || f.rollback != 0
	if len(report.Findings) == 0 && !asked {
		printFindings(w, report, f.repairCommand())
		return nil
	}
	if err := f.keepCopy(ctx, w, o, len(report.Findings) > 0 && report.Findings[0].Structure); err != nil {
		return err
	}
	before := len(report.Findings)
	if report, err = store.Mend(ctx, o); err != nil {
		return err
	}
	f.printMended(w, report)
	if n := before - len(report.Findings); n > 0 {
		fmt.Fprintf(w, "%d mended\n", n)
	}
	if asked {
		if err := f.decide(ctx, w, o); err != nil {
			return err
		}
		if report, err = store.Check(ctx, o); err != nil {
			return err
		}
	}
	return f.printLeft(w, report)
}

// runExternal mends what needs no files.
func (f *repairFlags) runExternal(ctx context.Context, w io.Writer, o store.Options) error {
	if f.restore != "" || f.remove != "" || f.rollback != 0 {
		return errors.New("--restore, --delete and --rollback are for the embedded store: restore a snapshot of etcd or a backup of Penstock (penstock restore), or start the control plane and apply, delete or roll back there")
	}
	o.AdoptState = f.adopt
	report, err := store.Mend(ctx, o)
	if err != nil {
		return err
	}
	f.printMended(w, report)
	if len(report.Findings) == 0 {
		printFindings(w, report, "")
		return nil
	}
	for _, x := range report.Findings {
		fmt.Fprintf(w, "%s is lost: %s\n", x.What, x.Detail)
	}
	fmt.Fprintf(w, "%d damaged: replace the member of etcd, or restore a snapshot of etcd or a backup of Penstock (penstock restore)\n", len(report.Findings))
	return errDamaged
}

func (f *repairFlags) printMended(w io.Writer, r *store.Report) {
	for _, line := range r.Mended {
		fmt.Fprintln(w, line)
	}
}

// keepCopy keeps the files as they are: as a copy, or, when they have to be made anew, by
// moving them aside.
func (f *repairFlags) keepCopy(ctx context.Context, w io.Writer, o store.Options, rebuild bool) error {
	kept := fmt.Sprintf("%s.before-repair-%s", o.DataDir, time.Now().UTC().Format("20060102T150405.000Z"))
	if !rebuild {
		if err := os.CopyFS(kept, os.DirFS(o.DataDir)); err != nil {
			return fmt.Errorf("nothing was repaired, because no copy could be kept: %w", err)
		}
		fmt.Fprintf(w, "a copy of the store as it was is in %s\n", kept)
		return nil
	}
	made, err := os.MkdirTemp(filepath.Dir(o.DataDir), filepath.Base(o.DataDir)+".rebuilt-*")
	if err != nil {
		return err
	}
	got, err := store.Rebuild(ctx, o, o.DataDir, made)
	if err != nil {
		return errors.Join(fmt.Errorf("nothing was repaired: %w", err), os.RemoveAll(made))
	}
	if err := errors.Join(os.Rename(o.DataDir, kept), os.Rename(made, o.DataDir)); err != nil {
		return err
	}
	fmt.Fprintf(w, "the files were made anew with %d revisions and %d objects; as they were they are in %s\n", got.Revisions, got.Objects, kept)
	if got.StateLost {
		fmt.Fprintln(w, "roles, tokens and revocations were not taken over, because one that was revoked could be valid again: set them up anew, and revoke proxies again")
	}
	return nil
}

// decide does what the flags say about what is lost.
func (f *repairFlags) decide(ctx context.Context, w io.Writer, o store.Options) error {
	o.MaintenanceInterval = -1
	st, err := store.Open(ctx, o)
	if err != nil {
		return err
	}
	head, err := st.Head(ctx)
	if err != nil {
		return errors.Join(err, st.Close())
	}
	info := store.Info{Author: "penstock store repair"}
	var rev store.Revision
	switch {
	case f.rollback != 0:
		info.Message = fmt.Sprintf("repair: rollback to revision %d", f.rollback)
		rev, err = st.Rollback(ctx, head.Number, f.rollback, info)
	case f.remove != "":
		info.Message = "repair: delete " + storedName(f.remove)
		rev, err = st.Commit(ctx, head.Number, []store.Change{{Name: storedName(f.remove)}}, info)
	default:
		var c store.Change
		if c, err = f.older(ctx, st); err == nil {
			info.Message = fmt.Sprintf("repair: %s as of revision %d", c.Name, f.from)
			rev, err = st.Commit(ctx, head.Number, []store.Change{c}, info)
		}
	}
	if err := errors.Join(err, st.Close()); err != nil {
		return err
	}
	fmt.Fprintf(w, "revision %d: %s\n", rev.Number, info.Message)
	return nil
}

// older is a resource as it was.
func (f *repairFlags) older(ctx context.Context, st store.Store) (store.Change, error) {
	name := storedName(f.restore)
	resources, err := st.Load(ctx, f.from)
	if _, some := errors.AsType[*store.DamageError](err); err != nil && !some {
		return store.Change{}, err
	}
	for _, r := range resources {
		if o := gateway.FromResource(r); o != nil && o.GetName() == name {
			return store.Change{Name: name, Resource: r}, nil
		}
	}
	return store.Change{}, fmt.Errorf("revision %d has no %s that can be read: choose another one (penstock store check names what is damaged)", f.from, name)
}

// storedName completes a name such as routes/shop.
func storedName(name string) string {
	if strings.HasPrefix(name, "projects/") {
		return name
	}
	return "projects/default/" + name
}

// printLeft says what is left, and what to do about it.
func (f *repairFlags) printLeft(w io.Writer, r *store.Report) error {
	if len(r.Findings) == 0 {
		printFindings(w, r, f.repairCommand())
		return nil
	}
	lost := false
	for _, x := range r.Findings {
		lost = lost || x.Head
		name, _, _ := strings.Cut(x.What, " ")
		switch {
		case x.State:
			fmt.Fprintf(w, "%s: %s\n", x.What, x.Detail)
		case x.Resource && x.Head:
			fmt.Fprintf(w, "%s is lost: %s; start the control plane and apply it again, or: penstock store repair --data-dir %s --restore %s --from REVISION, or --delete %s\n", x.What, x.Detail, f.dataDir, name, name)
		case x.Head:
			fmt.Fprintf(w, "%s is lost: %s; go back with: penstock store repair --data-dir %s --rollback REVISION, or restore a backup\n", x.What, x.Detail, f.dataDir)
		default:
			fmt.Fprintf(w, "%s is lost: %s; only the history needs it\n", x.What, x.Detail)
		}
	}
	fmt.Fprintf(w, "%d damaged\n", len(r.Findings))
	if !lost {
		return nil
	}
	return errDamaged
}
