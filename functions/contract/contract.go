// Package contract says of each way in which the code of a function is called what holds
// wherever it runs: what may be written, what an instance takes at once, what it speaks,
// which dependencies its source can name. Nobody else asks which contract a function has;
// how its instances are run is in package functions.
package contract

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// Contract is a field of the oneof contract of pb.Function. Only Name must be set.
type Contract struct {
	// Name of the field.
	Name protoreflect.Name
	// text names the contract for people; nil: Name.
	text func(*pb.Function) string
	// check reports what is wrong and the proto cannot say.
	check func(*pb.Function, Report)
	// concurrency is what an instance takes at once by default; 0: 100.
	concurrency uint32
	// programs are the command lines that are written in the function.
	programs func(*pb.Function) []Program
	// build is the command that makes a program of the source.
	build func(*pb.Function) []string
	// http2 reports whether instances speak HTTP/2 without TLS, by prior knowledge.
	http2 func(*pb.Function) bool
	// wholeBody: a request becomes one event, so its body is taken whole.
	wholeBody bool
	// language is what interprets the source.
	language func(*pb.Function) Language
}

// Program is a command line, with the field that it is written in.
type Program struct {
	Field string
	Args  []string
}

// Language is what interprets a source, and so which dependencies it can name.
type Language int

// The languages.
const (
	// Any: the source brings what runs it.
	Any Language = iota
	// Python installs from requirements.txt.
	Python
	// Node installs from package.json.
	Node
)

// Report takes the problems of a function. Fields are paths from the function.
type Report interface {
	// Has reports whether a field has a problem already.
	Has(field string) bool
	Add(field, format string, args ...any)
}

// All are the contracts, in order of the fields.
func All() []Contract { return slices.Clone(all) }

var all = []Contract{lambda, server, framework, azure}

// Of is the contract of a function; one with an empty Name when it has none that this
// version knows.
func Of(f *pb.Function) Contract {
	m := f.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("contract"))
	for _, c := range all {
		if field != nil && field.Name() == c.Name {
			return c
		}
	}
	return Contract{}
}

// Text names the contract of a function for people, such as "lambda/python".
func Text(f *pb.Function) string {
	c := Of(f)
	if c.text != nil {
		return c.text(f)
	}
	return cmp.Or(string(c.Name), "unknown")
}

// Check reports what is wrong with the contract of a function.
func Check(f *pb.Function, r Report) {
	if c := Of(f); c.check != nil {
		c.check(f, r)
	}
}

// Concurrency is how many requests an instance of a function takes at once.
func Concurrency(f *pb.Function) int {
	return int(cmp.Or(f.GetConcurrency(), Of(f).concurrency, 100))
}

// Programs are the command lines that are written in a function; everybody on the machine
// of a runner can read them.
func Programs(f *pb.Function) []Program {
	if c := Of(f); c.programs != nil {
		return c.programs(f)
	}
	return nil
}

// Build is the command that makes a program of the source of a function; nil: none.
func Build(f *pb.Function) []string {
	if c := Of(f); c.build != nil {
		return c.build(f)
	}
	return nil
}

// HTTP2 reports whether instances of a function speak HTTP/2 without TLS, by prior
// knowledge (RFC 9113, section 3.3), and not HTTP/1.1.
func HTTP2(f *pb.Function) bool {
	c := Of(f)
	return c.http2 != nil && c.http2(f)
}

// WholeBody reports whether an instance of a function gets the body of a request in one
// piece, so that no more than a bounded size is taken.
func WholeBody(f *pb.Function) bool { return Of(f).wholeBody }

// LanguageOf is what interprets the source of a function.
func LanguageOf(f *pb.Function) Language {
	if c := Of(f); c.language != nil {
		return c.language(f)
	}
	return Any
}
