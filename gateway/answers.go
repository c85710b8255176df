package gateway

// Answer is one kind of response that the gateway gives itself. A client can rely
// on Code: it never changes its meaning. docs/answers.md lists all of them.
type Answer struct {
	// Code is what programs compare, such as "PK-EDGE-HOST".
	Code string
	// Status is the HTTP status.
	Status uint32
	// Detail is a sentence for people.
	Detail string
}

// The refusals of the edge, before any route is looked at.
var (
	BadHost     = Answer{"PK-EDGE-HOST", 400, "A request has one host: a name or an IP address, with or without a port from 1 to 65535."}
	HostTooLong = Answer{"PK-EDGE-HOST-LENGTH", 400, "The host is longer than 255 characters."}
	BadMethod   = Answer{"PK-EDGE-METHOD", 405, "This method is not served: TRACE, CONNECT and methods that are not in capital letters are refused."}
	BadPath     = Answer{"PK-EDGE-PATH", 400, "The path has a character or an escape that servers read in different ways: a control character, ';', an overlong UTF-8 sequence, or a '%' without two hexadecimal digits."}
	BadSlash    = Answer{"PK-EDGE-ENCODED-SLASH", 400, "The path has an encoded slash, backslash or NUL, or does not start with a slash."}
)
