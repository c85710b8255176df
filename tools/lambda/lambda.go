// Package lambda carries the pinned Python packages of the Lambda contract.
package lambda

import _ "embed"

// Requirements is a pip requirements file with the hash of every wheel.
//
//go:embed requirements.txt
var Requirements []byte
