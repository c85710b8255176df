package gateway

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

var (
	// packageDigest is a package that was uploaded.
	packageDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// frameworkTarget are the names that the Functions Frameworks take: those that
	// code registers, and attributes of modules.
	frameworkTarget = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	// azureName is the name of a function, which is that of its folder.
	azureName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)
)

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
func (c *checker) contract(f *pb.Function) {
	switch t := f.GetContract().(type) {
	case *pb.Function_Lambda:
		if t.Lambda.GetRuntime() == pb.LambdaRuntime_LAMBDA_RUNTIME_PYTHON && t.Lambda.GetHandler() != "" {
			module, fn, ok := cutLast(t.Lambda.GetHandler(), ".")
			if !ok || module == "" || fn == "" || strings.ContainsAny(t.Lambda.GetHandler(), " \t\x00") {
				c.add("lambda.handler", `%q must be the module and the function, such as "app.lambda_handler"`, t.Lambda.GetHandler())
			}
		}
	case *pb.Function_Server:
		c.command("server.command", t.Server.GetCommand())
		c.command("server.build", t.Server.GetBuild())
		if image := t.Server.GetImage(); image != "" {
			if len(t.Server.GetBuild()) > 0 {
				c.add("server.build", "an image is built already; take build or image away")
			}
			if strings.ContainsAny(image, " \t\r\n\x00") {
				c.add("server.image", "%q is not the reference of an image: it holds white space", image)
			}
		}
	case *pb.Function_FunctionsFramework:
		if n := t.FunctionsFramework.GetTarget(); n != "" && !frameworkTarget.MatchString(n) && !c.has("functions_framework.target") {
			c.add("functions_framework.target", "%q must be the name of a function in the source: a letter or _, then letters, digits, _, - and .", n)
		}
	case *pb.Function_Azure:
		if n := t.Azure.GetFunction(); n != "" && !azureName.MatchString(n) && !c.has("azure.function") {
			c.add("azure.function", "%q must be the name of a folder with a function.json: a letter, then letters, digits, _ and -", n)
		}
	}
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func (c *checker) command(field string, args []string) {
	if len(args) > 0 && strings.TrimSpace(args[0]) == "" {
		c.add(field+"[0]", "is empty; it names the program to run")
	}
	for i, a := range args {
		if strings.ContainsRune(a, 0) {
			c.add(fmt.Sprintf("%s[%d]", field, i), "holds a NUL, which no argument can")
		}
	}
}
