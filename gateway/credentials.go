package gateway

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/penstock-gateway/penstock/functions/contract"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Credentials are often written where everybody reads them: in the environment of a
// function, its command, or the fixed value of a header. These are valid, so they are
// warned of; the value itself is never shown.

var (
	// credentialName is a variable or header that commonly holds a credential.
	credentialName = regexp.MustCompile(`(?i)(^|[-_])(authorization|passw(or)?d|passphrase|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|cookie)([-_]?(id|value|base64))?$`)
	// credentialValue are values that are made for nothing else: HTTP credentials, JSON
	// Web Tokens, private keys, URLs with a password, and the prefixes with which cloud
	// providers mark theirs, so that they are found.
	credentialValue = regexp.MustCompile(`(?i:^(bearer|basic)\s+\S{8,})|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s:@]+@` +
		`|\b(AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}|\bxox[abprs]-[\w-]{10,}|\bsk[-_](live_|test_|proj-)?\w{20,}|\bAIza[\w-]{35}`)
	// placeholder are values that are not one: numbers, switches, references to one.
	placeholder = regexp.MustCompile(`(?i)^(|true|false|none|null|\d+|[$%<{].*[}%>]?|/\S*|file:.*)$`)
)

// resemblesCredential reports whether what has a name is a credential, by all appearance.
func resemblesCredential(name, value string) bool {
	return credentialValue.MatchString(value) || credentialName.MatchString(name) && !placeholder.MatchString(value)
}

// HideCredentials replaces in a text what is made to be a credential, by its form, with
// HiddenValue.
func HideCredentials(text string) string {
	return credentialValue.ReplaceAllString(text, HiddenValue)
}

// credentialWarnings are what looks like a credential in the open.
func (c *checker) credentialWarnings(o Object) {
	if f, ok := o.(*pb.Function); ok {
		for _, k := range slices.Sorted(maps.Keys(f.GetEnv())) {
			if resemblesCredential(k, f.GetEnv()[k]) {
				c.add(fmt.Sprintf("env[%q]", k), "looks like a credential, and everybody who may read the configuration sees it; put it into a Secret and name that in env_secrets")
			}
		}
		for _, p := range contract.Programs(f) {
			for i, a := range p.Args {
				if credentialValue.MatchString(a) {
					c.add(fmt.Sprintf("%s[%d]", p.Field, i), "looks like a credential, and everybody on the runner's machine sees command lines; read it from the environment, by env_secrets")
				}
			}
		}
		return
	}
	if _, secret := o.(*pb.Secret); !secret {
		c.headerWarnings("", o.ProtoReflect())
	}
}

// headerWarnings looks through all fixed values of headers in a message.
func (c *checker) headerWarnings(path string, m protoreflect.Message) {
	if h, ok := m.Interface().(*pb.Header); ok {
		if resemblesCredential(h.GetName(), h.GetValue()) {
			c.add(path, "the value of %s looks like a credential, and everybody who may read the configuration, or that of a proxy, sees it; let the backend hold it, or a function that gets it by env_secrets", h.GetName())
		}
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() == nil || f.IsMap() || !m.Has(f) || f.Message().ParentFile().Package() != "penstock.v1" {
			continue
		}
		at := strings.TrimPrefix(path+"."+string(f.Name()), ".")
		if !f.IsList() {
			c.headerWarnings(at, m.Get(f).Message())
			continue
		}
		for j := range m.Get(f).List().Len() {
			c.headerWarnings(fmt.Sprintf("%s[%d]", at, j), m.Get(f).List().Get(j).Message())
		}
	}
}
