package main

import (
	_ "embed"
	"os"
	"path/filepath"
)

// jaegerPage is what Jaeger shows to a browser: its module has no user interface,
// only a page that says so.
//
//go:embed jaegerpage.html
var jaegerPage []byte

// jaegerMissesPage is a warning of Jaeger about a page of its own, also when it is
// given another one.
const jaegerMissesPage = "ui assets not embedded in the binary"

func jaegerPageDir(dataDir string) string { return filepath.Join(runDir(dataDir), "jaeger") }

// writeJaegerPage makes the folder that --query.static-files names.
func writeJaegerPage(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, "index.html"), jaegerPage, 0o600)
}
