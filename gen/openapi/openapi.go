// Package openapi is the description of the REST form of the API: OpenAPI 2.0,
// generated from the protos.
package openapi

import _ "embed"

// JSON is the description.
//
//go:embed penstock.swagger.json
var JSON []byte
