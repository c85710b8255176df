package change

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// TestSecretFieldsAreMarked: each field of the API whose name speaks of a secret is
// marked as one that is written only, or is known to hold none; so a new one is not
// forgotten.
func TestSecretFieldsAreMarked(t *testing.T) {
	harmless := map[protoreflect.FullName]string{}
	for _, n := range []protoreflect.FullName{
		"penstock.v1.SecretKey.secret", "penstock.v1.Function.env_secrets", "penstock.v1.JwtAuthentication.jwks_secret",
		"penstock.v1.JwtAuthentication.jwks", // public keys: a private or symmetric one is refused
		"penstock.v1.CreateSecretRequest.secret_id",
		"penstock.v1.CreateJoinTokenResponse.token",                              // shown once, to who asked for it
		"penstock.v1.CreateTokenResponse.secret",                                 // likewise
		"penstock.v1.MintDevTokenResponse.token",                                 // likewise
		"penstock.v1.GetDevIssuerResponse.jwks",                                  // public keys
		"penstock.v1.ConnectResponse.secrets", "penstock.v1.FunctionSecrets.env", // to runners only
	} {
		harmless[n] = "a name, public, or for runners only"
	}
	words := []string{"secret", "password", "private", "token", "jwks", "credential"}
	protoregistry.GlobalFiles.RangeFilesByPackage("penstock.v1", func(fd protoreflect.FileDescriptor) bool {
		var visit func(protoreflect.MessageDescriptors)
		visit = func(list protoreflect.MessageDescriptors) {
			for i := range list.Len() {
				m := list.Get(i)
				visit(m.Messages())
				for j := range m.Fields().Len() {
					f := m.Fields().Get(j)
					for _, word := range words {
						if strings.Contains(string(f.Name()), word) && f.Kind() == protoreflect.StringKind && !hidden(f) && harmless[f.FullName()] == "" && !strings.HasSuffix(string(f.Name()), "page_token") {
							t.Errorf("%s: mark it INPUT_ONLY, or say here why it is harmless", f.FullName())
						}
					}
				}
			}
		}
		visit(fd.Messages())
		return true
	})
	for _, must := range []protoreflect.FullName{"penstock.v1.Secret.jwks", "penstock.v1.Secret.data", "penstock.v1.CertificateSecret.private_key"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(must)
		if err != nil || !hidden(d.(protoreflect.FieldDescriptor)) {
			t.Errorf("%s is not hidden: %v", must, err)
		}
	}
}
