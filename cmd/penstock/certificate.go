package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock-gateway/penstock/internal/pki"
)

// maxPersonCert is the longest life of a person's certificate.
const maxPersonCert = 366 * 24 * time.Hour

func newCertificateCommand() *cobra.Command {
	var dataDir, pkiDir, out string
	var ttl time.Duration
	c := &cobra.Command{
		Use:   "certificate NAME --out DIR",
		Short: "Make a client certificate for a person, with the authority of this machine",
		Long: "Writes NAME.crt, NAME.key and ca.crt to a folder, for `penstock login --cert --key --ca`. It needs the key of the\n" +
			"certificate authority, so it runs on the control plane's machine, by the owner. The person is user:NAME, and\n" +
			"may do nothing before `penstock access grant`. `penstock proxy revoke --serial` refuses the certificate.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if pkiDir == "" {
				pkiDir = filepath.Join(cmp.Or(dataDir, runningDataDir()), "pki")
			}
			return writePersonCertificate(cmd.OutOrStdout(), pkiDir, out, args[0], ttl)
		},
	}
	c.Flags().StringVar(&dataDir, "data-dir", "", "data folder of the control plane (default: the one that runs)")
	c.Flags().StringVar(&pkiDir, "pki-dir", "", "folder of the certificate authority (default DATA-DIR/pki)")
	c.Flags().StringVar(&out, "out", "", "folder for the files")
	c.Flags().DurationVar(&ttl, "ttl", 30*24*time.Hour, "how long it lasts, 1m to 8784h")
	_ = c.MarkFlagRequired("out")
	return c
}

func writePersonCertificate(w io.Writer, pkiDir, out, name string, ttl time.Duration) error {
	if ttl < time.Minute || ttl > maxPersonCert {
		return fmt.Errorf("--ttl %s: it must be from 1m to 8784h", ttl)
	}
	// Never a new authority, which nobody would know.
	ca, err := pki.LoadCA(pkiDir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the certificate authority is not here: %w: run this on the control plane's machine, as its owner", err)
	} else if err != nil {
		return err
	}
	cert, key, err := ca.Issue(pki.Request{SPIFFE: pki.UserID(name), TTL: ttl})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	crt := filepath.Join(out, name+".crt")
	err = errors.Join(
		replaceFile(filepath.Join(out, name+".key"), key, 0o600), replaceFile(crt, cert, 0o644),
		replaceFile(filepath.Join(out, "ca.crt"), ca.CertPEM(), 0o644))
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	leaf, err := pki.ReadCertificate(crt)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "user:%s until %s, serial %s, in %s\n", name, leaf.NotAfter.Local().Format(time.DateTime), pki.Serial(leaf), out)
	return nil
}
