// Package framework carries the pinned packages of the Functions Framework
// contract.
package framework

import _ "embed"

var (
	// Requirements is a pip requirements file with the hash of every wheel.
	//
	//go:embed requirements.txt
	Requirements []byte

	// Package and PackageLock are the package.json of npm and its lock file, with
	// the hash of every package.
	//
	//go:embed package.json
	Package []byte
	//go:embed package-lock.json
	PackageLock []byte
)
