package gateway

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/functions/contract"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// packageDigest is a package that was uploaded.
var packageDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// source checks where the code of a function is.
func (c *checker) source(source string) {
	digest, packed := strings.CutPrefix(source, "sha256:")
	switch {
	case source == "" || c.has("source"):
	case packed && !packageDigest.MatchString(digest):
		c.add("source", "%q must be sha256: and the 64 hexadecimal digits, in small letters, of a package that was uploaded", source)
	case packed:
	case strings.HasPrefix(source, "/") || strings.ContainsAny(source, "\\\x00"):
		c.add("source", "%q must be a folder or a .zip file relative to the functions root, with / between its parts", source)
	case slices.Contains(strings.Split(source, "/"), "..") || path.Clean(source) == "..":
		c.add("source", "%q leaves the functions root; write it without ..", source)
	}
}

// contract checks how the code of a function is called.
func (c *checker) contract(f *pb.Function) { contract.Check(f, contractReport{c}) }

// contractReport takes the problems of a contract.
type contractReport struct{ c *checker }

// Has implements contract.Report.
func (r contractReport) Has(field string) bool { return r.c.has(field) }

// Add implements contract.Report.
func (r contractReport) Add(field, format string, args ...any) { r.c.add(field, format, args...) }
