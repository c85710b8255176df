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
	BadHost        = Answer{"PK-EDGE-HOST", 400, "A request has one host: a name or an IP address, with or without a port from 1 to 65535."}
	HostTooLong    = Answer{"PK-EDGE-HOST-LENGTH", 400, "The host is longer than 255 characters."}
	Misdirected    = Answer{"PK-EDGE-MISDIRECTED", 421, "The TLS connection was made for another host, which has another certificate: make one for this host."}
	BadScheme      = Answer{"PK-EDGE-SCHEME", 400, "The URL in the request has another scheme than the connection."}
	BadMethod      = Answer{"PK-EDGE-METHOD", 405, "This method is not served: TRACE, CONNECT and methods that are not in capital letters are refused."}
	BadPath        = Answer{"PK-EDGE-PATH", 400, "The path has a character or an escape that servers read in different ways: a control character, an overlong UTF-8 sequence, a '%' without two hexadecimal digits, or it does not start with a slash."}
	BadSlash       = Answer{"PK-EDGE-ENCODED-SLASH", 400, "The path has an encoded slash or backslash, which this listener refuses."}
	BadSemicolon   = Answer{"PK-EDGE-SEMICOLON", 400, "The path has a semicolon, which this listener refuses."}
	AmbiguousPath  = Answer{"PK-EDGE-AMBIGUOUS-PATH", 400, "The path could be read in two ways that lead to different routes: with its encoded slashes, semicolons or repeated slashes, and without."}
	BadUpgrade     = Answer{"PK-EDGE-UPGRADE", 400, "A connection is upgraded to a WebSocket only; the header upgrade asks for another protocol."}
	BadHeaderName  = Answer{"PK-EDGE-HEADER-NAME", 400, "A header has '_' in its name, which this listener refuses."}
	TooManyHeaders = Answer{"PK-EDGE-HEADERS-COUNT", 431, "The request has more headers than this listener takes."}
	HeadersTooBig  = Answer{"PK-EDGE-HEADERS-SIZE", 431, "The header lines of the request are longer than this listener takes."}
	BadProtocol    = Answer{"PK-EDGE-PROTOCOL", 400, "The request is not valid HTTP."}
	BadEncoding    = Answer{"PK-EDGE-TRANSFER-ENCODING", 501, "The transfer encoding of the request is not supported."}
	OldProtocol    = Answer{"PK-EDGE-HTTP-VERSION", 426, "HTTP/1.1 or HTTP/2 is needed."}
	SlowHeaders    = Answer{"PK-EDGE-HEADERS-TIMEOUT", 408, "The head of the request did not come in time."}
	SlowRequest    = Answer{"PK-EDGE-REQUEST-TIMEOUT", 408, "The request did not come in time."}
	BodyTooBig     = Answer{"PK-EDGE-BODY-SIZE", 413, "The body of the request is too large."}
	Overloaded     = Answer{"PK-EDGE-OVERLOADED", 503, "The gateway is overloaded."}
)

// What ends a request on its way through the routes.
var (
	NoRoute         = Answer{"PK-ROUTE-NONE", 404, "No route serves this request."}
	RoutesLoading   = Answer{"PK-ROUTE-LOADING", 503, "The routes of this host have not come to the proxy yet."}
	RouteBroken     = Answer{"PK-ROUTE-BROKEN", 503, "The route cannot be served as it is written."}
	Unauthenticated = Answer{"PK-AUTH-TOKEN", 401, "The request has no valid token."}
	RefusedToken    = Answer{"PK-AUTH-TOKEN-REFUSED", 401, "The token is not valid here."}
	Forbidden       = Answer{"PK-AUTH-DENIED", 403, "The caller may not do this."}
	LimitExceeded   = Answer{"PK-LIMIT-EXCEEDED", 429, "A limit of this route is used up; Retry-After says when to try again."}
	LimiterDown     = Answer{"PK-LIMIT-UNAVAILABLE", 503, "The limits of this route cannot be checked."}
	NoEndpoint      = Answer{"PK-BACKEND-NONE", 503, "No endpoint of the backend is there or healthy."}
	BackendReset    = Answer{"PK-BACKEND-CONNECTION", 503, "The connection to the backend failed."}
	BackendTimeout  = Answer{"PK-BACKEND-TIMEOUT", 504, "The backend did not answer in time."}
	BackendProtocol = Answer{"PK-BACKEND-PROTOCOL", 502, "The backend's answer is not valid HTTP."}
	// Other keeps its status and the text of the proxy.
	Other = Answer{"PK-GATEWAY", 0, "Whatever else the proxy answers by itself; its own words are the detail."}
)

// Answers lists every answer, for the documentation.
func Answers() []Answer {
	return []Answer{
		BadHost, HostTooLong, Misdirected, BadScheme, BadMethod, BadPath, BadSlash, BadSemicolon, AmbiguousPath, BadUpgrade, BadHeaderName, TooManyHeaders, HeadersTooBig,
		BadProtocol, BadEncoding, OldProtocol, SlowHeaders, SlowRequest, BodyTooBig, Overloaded,
		NoRoute, RoutesLoading, RouteBroken, Unauthenticated, RefusedToken, Forbidden, LimitExceeded, LimiterDown, NoEndpoint, BackendReset, BackendTimeout, BackendProtocol, Other,
	}
}
