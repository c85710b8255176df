package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/gateway/policies"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
	"github.com/penstock-gateway/penstock/internal/backup"
	"github.com/penstock-gateway/penstock/internal/control"
	"github.com/penstock-gateway/penstock/store"
)

// backupFlags are those of `penstock backup`.
type backupFlags struct {
	clientFlags
	history, keys, offline bool
}

// folder is the data folder of the control plane.
func (f *backupFlags) folder() string { return cmp.Or(f.DataDir, "./.penstock") }

func newBackupCommand() *cobra.Command {
	var f backupFlags
	c := &cobra.Command{
		Use:   "backup FILE",
		Short: "Write the whole configuration into a file",
		Long: "Writes the configuration of a control plane into one file: all objects, roles and revocations, and the\n" +
			"uploaded code of functions. Secrets stay sealed in it. The keys that a restored control plane needs as well,\n" +
			"seal.key and the certificate authority, are in it only with --with-keys: keep such a file as safe as them.",
		Example: "  penstock backup penstock.backup\n  penstock backup penstock.backup --with-keys --history",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.write(cmd.Context(), args[0]); err != nil {
				return err
			}
			contents, err := backup.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("the backup was written and cannot be read: %w", err)
			}
			describeBackup(cmd.OutOrStdout(), args[0], contents)
			return nil
		},
	}
	f.output = "text"
	f.addWhere(c)
	fl := c.Flags()
	fl.BoolVar(&f.history, "history", false, "all revisions that are kept, not only the newest")
	fl.BoolVar(&f.keys, "with-keys", false, "add seal.key and the certificate authority, with its key, from --data-dir (default ./.penstock)")
	fl.BoolVar(&f.offline, "offline", false, "read --data-dir of a control plane that is stopped, instead of asking one that runs")
	return c
}

// write makes the file.
func (f *backupFlags) write(ctx context.Context, file string) error {
	return backup.WriteFile(file, func(emit backup.Emit) error {
		take := f.takeRunning
		if f.offline {
			take = f.takeOffline
		}
		if err := take(ctx, emit); err != nil || !f.keys {
			return err
		}
		for _, name := range backup.KeyFiles {
			data, err := os.ReadFile(filepath.Join(f.folder(), name))
			if err != nil {
				return fmt.Errorf("--with-keys: %w: name the data folder of the control plane with --data-dir", err)
			}
			if err := emit(backup.KeyName+name, int64(len(data)), bytes.NewReader(data)); err != nil {
				return err
			}
		}
		return nil
	})
}

// takeRunning asks a control plane.
func (f *backupFlags) takeRunning(ctx context.Context, emit backup.Emit) error {
	ctx, conn, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := pb.NewBackupServiceClient(conn).Backup(ctx, &pb.BackupRequest{History: f.history})
	if err != nil {
		return err
	}
	return control.ReceiveEntries(func() (*pb.BackupEntry, error) {
		r, err := stream.Recv()
		return r.GetEntry(), err
	}, emit)
}

// takeOffline reads a data folder.
func (f *backupFlags) takeOffline(ctx context.Context, emit backup.Emit) error {
	if _, err := os.Stat(filepath.Join(f.folder(), "etcd")); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	st, err := store.Open(ctx, store.Options{
		DataDir: filepath.Join(f.folder(), "etcd"), SealKeyFile: filepath.Join(f.folder(), "seal.key"), Footprint: policies.Model().Footprint,
		MaintenanceInterval: -1, Logger: slog.New(slog.DiscardHandler),
	})
	if errors.Is(err, store.ErrInUse) {
		return fmt.Errorf("%w; while it runs leave out --offline", err)
	} else if err != nil {
		return err
	}
	err = backup.Source{Store: st, PackagesDir: filepath.Join(f.folder(), "packages"), Version: version(), History: f.history}.Take(ctx, emit)
	return errors.Join(err, st.Close())
}

// describeBackup says what is in a backup.
func describeBackup(w io.Writer, file string, c *backup.Contents) {
	m := c.Manifest
	fmt.Fprintf(w, "%s: revision %d of %s, %d resources", file, m.Revision, m.Taken.Local().Format(time.DateTime), m.Resources)
	if m.Revisions > 1 {
		fmt.Fprintf(w, ", with %d revisions", m.Revisions)
	}
	if n := len(c.Packages); n > 0 {
		fmt.Fprintf(w, ", %d packages of functions", n)
	}
	fmt.Fprintln(w)
	if len(c.Keys) > 0 {
		fmt.Fprintln(w, "It holds the seal key and the key of the certificate authority: whoever reads it has all secrets. Its mode is 0600.")
	} else if m.SealKey != "" {
		fmt.Fprintln(w, "It holds no keys: a restore needs the control plane's seal.key and pki folder, too.")
	}
}

// restoreFlags are those of `penstock restore`.
type restoreFlags struct {
	clientFlags
	writeFlags
	target             backup.Target
	check, newRevision bool
}

func newRestoreCommand() *cobra.Command {
	var f restoreFlags
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Bring a backup back, into an empty data folder or a running control plane",
		Long: "Fills the data folder --into, which must be empty, with a backup; then start the control plane on it.\n" +
			"With --as-new-revision a control plane that runs makes the backup its newest revision: what the backup does\n" +
			"not have is deleted, and roles and tokens stay as they are. A file that is not a whole backup changes nothing.\n\n" + notInBackup,
		Example: "  penstock restore penstock.backup --check\n  penstock restore penstock.backup --into ./restored\n  penstock restore penstock.backup --as-new-revision",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case f.check:
				contents, err := backup.ReadFile(args[0])
				if err != nil {
					return err
				}
				describeBackup(cmd.OutOrStdout(), args[0], contents)
				return nil
			case f.newRevision && f.target.Dir != "":
				return errors.New("--into and --as-new-revision exclude each other")
			case f.newRevision:
				return f.running(cmd, args[0])
			case f.target.Dir == "":
				return errors.New("say where to: --into DIR for an empty data folder, or --as-new-revision for the control plane that runs")
			}
			return f.folder(cmd, args[0])
		},
	}
	f.clientFlags.addShared(c)
	f.writeFlags.add(c)
	fl := c.Flags()
	fl.BoolVar(&f.check, "check", false, "only check the file, and say what it holds")
	fl.BoolVar(&f.newRevision, "as-new-revision", false, "into the control plane that runs")
	fl.StringVar(&f.target.Dir, "into", "", "data folder to fill; it must be empty or not there")
	fl.StringVar(&f.target.SealKeyFile, "seal-key-file", "", "the seal key, when the backup holds no keys")
	fl.StringVar(&f.target.PKIDir, "pki-dir", "", "folder of the certificate authority, when the backup holds no keys")
	fl.BoolVar(&f.target.NewCA, "new-ca", false, "make a new certificate authority: every proxy and runner must join again")
	return c
}

// notInBackup says what of functions has to be brought back otherwise.
const notInBackup = "Code of functions is in a backup where it was uploaded (penstock fn deploy). Folders of --functions-root are not:\n" +
	"bring them back yourself, and start with the same --functions-root."

// folder fills a data folder.
func (f *restoreFlags) folder(cmd *cobra.Command, file string) error {
	f.target.Store.Footprint = policies.Model().Footprint
	contents, err := backup.RestoreFile(cmd.Context(), file, f.target)
	if err != nil {
		return fmt.Errorf("nothing was restored: %w", err)
	}
	m := contents.Manifest
	fmt.Fprintf(cmd.OutOrStdout(), "restored revision %d with %d resources; start it with: penstock up --data-dir %s, or penstock control --data-dir %s\n",
		m.Revision, m.Resources, f.target.Dir, f.target.Dir)
	fmt.Fprintln(cmd.OutOrStdout(), notInBackup)
	fmt.Fprintln(cmd.OutOrStdout(), "Tokens are in no backup: issue new ones with: penstock access token create")
	return nil
}

// running has a control plane take the backup.
func (f *restoreFlags) running(cmd *cobra.Command, file string) error {
	if _, err := backup.ReadFile(file); err != nil {
		return fmt.Errorf("nothing was restored: %w", err)
	}
	ctx, conn, err := f.dial(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := pb.NewBackupServiceClient(conn).Restore(ctx)
	if err != nil {
		return err
	}
	options := f.options()
	emit, end := backup.Summed(func(name string, size int64, data io.Reader) error {
		return control.SendEntry(name, size, data, func(e *pb.BackupEntry) error {
			err := stream.Send(&pb.RestoreRequest{Entry: e, Options: options})
			options = nil
			return err
		})
	})
	err = backup.EachEntry(file, func(name string, size int64, data io.Reader) error {
		if strings.HasPrefix(name, backup.KeyName) || name == backup.SumName {
			return nil
		}
		return emit(name, size, data)
	})
	if err == nil {
		err = end()
	}
	if err != nil && !errors.Is(err, io.EOF) { // at its end CloseAndRecv has the reason
		return err
	}
	resp, rerr := stream.CloseAndRecv()
	if err := cmp.Or(rerr, err); err != nil {
		return err
	}
	err = printWrite(cmd.OutOrStdout(), f.output, resp, resp.GetResult(), resp.GetChanges(), f.dryRun)
	if f.output == "text" && (err == nil || errors.Is(err, errNotServing)) {
		fmt.Fprintln(cmd.OutOrStdout(), notInBackup)
	}
	return err
}
