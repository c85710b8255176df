package gateway

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

func emptyObjects() []Object {
	return []Object{&pb.Gateway{}, &pb.Route{}, &pb.Backend{}, &pb.Function{}, &pb.Consumer{}, &pb.Secret{}}
}

// rule wraps the JSON of a route's single rule that forwards to b.
func rule(json string) string {
	return `{'rules': [{'forward': {'backends': [{'backend': 'b'}]}, ` + json + `}]}`
}

func match(json string) string { return rule(`'matches': [` + json + `]`) }

func policies(json string) string { return rule(`'policies': {` + json + `}`) }

func jwt(json string) string {
	return policies(`'authentication': {'jwt': {'issuer': 'i', 'audiences': ['a'], ` + json + `}}`)
}

// badInput is one mistake per row and what a user is told.
var badInput = []struct{ kind, json, field, message string }{
	// Names.
	{"route", `{'name': 'routes/r', 'rules': [{'directResponse': {'status': 200}}]}`, "name", "want projects/{project}/"},
	{"route", `{'name': 'projects/p/backends/r', 'rules': [{'directResponse': {'status': 200}}]}`, "name", "projects/{project}/routes/{id}"},
	{"route", `{'name': 'projects/P/routes/r', 'rules': [{'directResponse': {'status': 200}}]}`, "name", `project "P" must start with a letter`},
	{"route", `{'name': 'projects/p/routes/r_1', 'rules': [{'directResponse': {'status': 200}}]}`, "name", `id "r_1" must`},
	{"route", `{'name': 'projects/p/roots/r', 'rules': [{'directResponse': {'status': 200}}]}`, "name", `"roots" is not a kind`},
	// Routes.
	{"route", `{}`, "rules", "1"},
	{"route", `{'rules': [{}]}`, "rules[0]", "set exactly one of forward, redirect, direct_response"},
	{"route", `{'rules': [{'name': 'a', 'directResponse': {'status': 200}}, {'name': 'a', 'matches': [{'path': {'exact': '/'}}], 'directResponse': {'status': 200}}]}`, "rules[1].name", `duplicate rule name "a", already used by rules[0].name`},
	{"route", `{'rules': [{'name': 'rule-1', 'directResponse': {'status': 200}}, {'matches': [{'path': {'exact': '/'}}], 'directResponse': {'status': 200}}]}`, "rules[1].name", "already used by rules[0].name"},
	{"route", `{'hostnames': ['http://a'], 'rules': [{'directResponse': {'status': 200}}]}`, "hostnames[0]", `"http://a": must be a host name such as`},
	{"route", `{'hostnames': ['a:80'], 'rules': [{'directResponse': {'status': 200}}]}`, "hostnames[0]", "no port"},
	{"route", `{'hostnames': ['A.x', 'a.x.'], 'rules': [{'directResponse': {'status': 200}}]}`, "hostnames", `duplicate "a.x"`},
	{"route", match(`{'headers': [{'name': 'x-real-ip', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-http-method-override', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-forwarded-host', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-trace-id', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-cold-start', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'proxy', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'forwarded', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-original-url', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-envoy-retry-on', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'headers': [{'name': 'x-penstock-scope', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", `{'hostnames': ['a.test', '127.1', '10.0.0.1'], 'rules': [{'directResponse': {'status': 200}}]}`, "hostnames[1]", "IPv4 address"},
	{"route", `{'hostnames': ['` + strings.Repeat("abcdefgh.", 30) + `com'], 'rules': [{'directResponse': {'status': 200}}]}`, "hostnames[0]", "at most 253"},
	{"route", `{'gateways': ['projects/q/gateways/g'], 'rules': [{'directResponse': {'status': 200}}]}`, "gateways[0]", "may not leave project p"},
	{"route", `{'gateways': ['backends/g'], 'rules': [{'directResponse': {'status': 200}}]}`, "gateways[0]", "is a backend; expected the name of a gateway"},
	{"route", `{'gateways': ['a/b/c'], 'rules': [{'directResponse': {'status': 200}}]}`, "gateways[0]", "is not a resource name"},
	// Paths.
	{"route", match(`{'path': {'exact': 'a'}}`), "rules[0].matches[0].path.exact", `must start with /`},
	{"route", match(`{'path': {}}`), "rules[0].matches[0].path", "set exactly one of exact, prefix, regex, text_prefix"},
	{"route", match(`{'path': {'prefix': '/a/./b'}}`), "rules[0].matches[0].path.prefix", `write "/a/b"`},
	{"route", match(`{'path': {'textPrefix': '/a/../b'}}`), "rules[0].matches[0].path.text_prefix", `write "/b"`},
	{"route", match(`{'path': {'exact': '/a%00'}}`), "rules[0].matches[0].path.exact", "refuses %00"},
	{"route", match(`{'path': {'exact': '/a?b=1'}}`), "rules[0].matches[0].path.exact", "match parameters with query"},
	{"route", match(`{'path': {'prefix': '/a#b'}}`), "rules[0].matches[0].path.prefix", "has no '#'"},
	{"route", match(`{'path': {'exact': '/é'}}`), "rules[0].matches[0].path.exact", "paths are ASCII; write other characters percent-encoded, such as %C3%A9"},
	{"route", match(`{'path': {'exact': '/%41'}}`), "rules[0].matches[0].path.exact", `write "/A"`},
	{"route", match(`{'path': {'exact': '/{id}'}}`), "rules[0].matches[0].path.exact", `write "/%7Bid%7D"`},
	{"route", match(`{'path': {'exact': '/50%'}}`), "rules[0].matches[0].path.exact", "two hexadecimal digits"},
	{"route", match(`{'path': {'regex': '/(a'}}`), "rules[0].matches[0].path.regex", "is not a valid RE2 regular expression"},
	{"route", match(`{'path': {'regex': '/a(?=b)'}}`), "rules[0].matches[0].path.regex", "is not a valid RE2 regular expression"},
	{"route", match(`{'path': {'regex': '/[a-z]{200}'}}`), "rules[0].matches[0].path.regex", "is too large"},
	{"route", match(`{'path': {'regex': '/é'}}`), "rules[0].matches[0].path.regex", "paths are ASCII"},
	{"route", match(`{'path': {'regex': 'users/.*'}}`), "rules[0].matches[0].path.regex", "starts with /"},
	{"route", match(`{'path': {'regex': '/a', 'ignoreCase': true}}`), "rules[0].matches[0].path.ignore_case", "(?i)"},
	{"route", match(`{'path': {'exact': '/a//b/../c'}}`), "rules[0].matches[0].path.exact", `write "/a//c"`},
	{"route", match(`{'path': {'exact': '/a//b;c'}}`), "rules[0].matches[0].path.exact", "PK-EDGE-AMBIGUOUS-PATH"},
	{"route", match(`{'path': {'exact': '/a%2F..'}}`), "rules[0].matches[0].path.exact", "PK-EDGE-AMBIGUOUS-PATH"},
	{"route", match(`{'path': {'prefix': '/a//'}}`), "rules[0].matches[0].path.prefix", `whole segments; write "/a/"`},
	{"route", match(`{'path': {'prefix': '//'}}`), "rules[0].matches[0].path.prefix", "whole segments"},
	{"route", match(`{'path': {'exact': '/a;b?c'}}`), "rules[0].matches[0].path.exact", "match parameters with query"},
	// Other matches.
	{"route", match(`{'headers': [{'name': 'x_real_ip', 'value': {'exact': 'a'}}]}`), "rules[0].matches[0].headers[0].name", "servers take it for x-real-ip"},
	{"route", match(`{'headers': [{'name': 'x-forwarded_for', 'value': {'present': true}}]}`), "rules[0].matches[0].headers[0].name", "servers take it for x-forwarded-for"},
	{"route", match(`{'headers': [{'name': 'x-real-ip', 'value': {'exact': ''}, 'invert': true}]}`), "rules[0].matches[0].headers[0].name", "can never match"},
	{"route", match(`{'methods': ['G-T']}`), "rules[0].matches[0].methods[0]", "such as GET"},
	{"route", match(`{'methods': ['trace']}`), "rules[0].matches[0].methods[0]", "the edge refuses it"},
	{"route", match(`{'headers': [{'name': 'x-envoy-a', 'value': {'exact': '1'}}]}`), "rules[0].matches[0].headers[0].name", "the edge removes"},
	{"route", match(`{'headers': [{'name': 'x a', 'value': {'exact': '1'}}]}`), "rules[0].matches[0].headers[0].name", "must be a header name"},
	{"route", match(`{'headers': [{'name': 'x-a'}]}`), "rules[0].matches[0].headers[0].value", "required"},
	{"route", match(`{'headers': [{'name': 'x-a', 'value': {}}]}`), "rules[0].matches[0].headers[0].value", "set exactly one of exact, prefix, suffix, regex, present"},
	{"route", match(`{'headers': [{'name': 'x-a', 'value': {'regex': '*'}}]}`), "rules[0].matches[0].headers[0].value.regex", "is not a valid RE2"},
	{"route", match(`{'headers': [{'name': 'x-a', 'value': {'regex': '[éü]'}}]}`), "rules[0].matches[0].headers[0].value.regex", "write a group"},
	{"route", match(`{'headers': [{'name': 'x-a', 'value': {'regex': '\\x{100}'}}]}`), "rules[0].matches[0].headers[0].value.regex", "U+0100"},
	{"route", match(`{'headers': [{'name': 'x-a', 'value': {'exact': '1'}}, {'name': 'x-a', 'value': {'exact': '1'}}]}`), "rules[0].matches[0].headers[1]", "already"},
	{"route", match(`{'query': [{'name': 'a=b', 'value': {'exact': '1'}}]}`), "rules[0].matches[0].query[0].name", "can never match"},
	{"route", match(`{'query': [{'name': 'a', 'value': {'regex': '('}}]}`), "rules[0].matches[0].query[0].value.regex", "is not a valid RE2"},
	{"route", match(`{'path': {'exact': '/a'}}, {'path': {'exact': '/a'}}`), "rules[0].matches[1]", "matches the same as rules[0].matches[0]"},
	{"route", `{'rules': [{'directResponse': {'status': 200}}, {'directResponse': {'status': 200}}]}`, "rules[1]", "matches the same as rules[0]"},
	// Actions.
	{"route", `{'rules': [{'forward': {}}]}`, "rules[0].forward.backends", "1"},
	{"route", `{'rules': [{'forward': {'backends': [{'backend': 'a'}, {'backend': 'b'}]}}]}`, "rules[0].forward.backends", "all weights are 0"},
	{"route", `{'rules': [{'forward': {'backends': [{'backend': 'a', 'weight': 1}, {'backend': 'backends/a', 'weight': 1}]}}]}`, "rules[0].forward.backends[1].backend", "already"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'scale': {'min': 1}, 'instances': 2}`, "instances", "remove one"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'scale': {'objective': 'fast'}}`, "scale", "fast"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'scale': {'min': 5, 'max': 2}}`, "scale", "min is 5, more than max"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'scale': {'objective': 'p99 <= 1s', 'targetRps': 3}}`, "scale", "choose one"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'traffic': [{'version': '3'}]}`, "traffic", "no entry has a weight"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'traffic': [{'version': '3', 'weight': 1, 'tag': 'x'}, {'tag': 'x'}]}`, "traffic[1].tag", "is the tag of traffic[0] already"},
	{"function", `{'lambda': {'runtime': 1, 'handler': 'a.b'}, 'source': 'a', 'traffic': [{'version': '3', 'weight': 1}, {'version': '3', 'weight': 2}]}`, "traffic[1].version", "is in traffic[0] already"},
	{"route", `{'rules': [{'forward': {'backends': [{'backend': 'secrets/a'}]}}]}`, "rules[0].forward.backends[0].backend", "name of a backend or function"},
	{"route", `{'rules': [{'forward': {'backends': [{'backend': 'b'}], 'prefixRewrite': '/x'}}]}`, "rules[0].forward.prefix_rewrite", "the rule has no match"},
	{"route", `{'rules': [{'matches': [{'methods': ['GET']}], 'forward': {'backends': [{'backend': 'b'}], 'prefixRewrite': '/x'}}]}`, "rules[0].forward.prefix_rewrite", "matches[0] has no path"},
	{"route", `{'rules': [{'matches': [{'path': {'regex': '/a.*'}}], 'forward': {'backends': [{'backend': 'b'}], 'prefixRewrite': '/x'}}]}`, "rules[0].forward.prefix_rewrite", "match by prefix or exact"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'forward': {'backends': [{'backend': 'b'}], 'prefixRewrite': 'x'}}]}`, "rules[0].forward.prefix_rewrite", "is not a path"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'forward': {'backends': [{'backend': 'b'}], 'prefixRewrite': '/../x'}}]}`, "rules[0].forward.prefix_rewrite", "not normalized"},
	{"route", `{'rules': [{'forward': {'backends': [{'backend': 'b'}], 'hostRewrite': 'a b'}}]}`, "rules[0].forward.host_rewrite", "is not a host name"},
	{"route", `{'rules': [{'redirect': {}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'exact': '/a'}}], 'redirect': {'path': '/a'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'hostnames': ['a.x', 'b.x'], 'rules': [{'redirect': {'host': 'a.x'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'redirect': {'prefixRewrite': '/a/b'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/'}}], 'redirect': {'prefixRewrite': '/b'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a/b'}}, {'path': {'prefix': '/c/x'}}], 'redirect': {'prefixRewrite': '/c'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'textPrefix': '/a'}}], 'redirect': {'prefixRewrite': '/aa'}}]}`, "rules[0].redirect", "is a cycle"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'redirect': {'prefixRewrite': 'b'}}]}`, "rules[0].redirect.prefix_rewrite", "is not a path"},
	{"route", `{'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'redirect': {'prefixRewrite': '/b', 'path': '/c'}}]}`, "rules[0].redirect.prefix_rewrite", "set one of them"},
	{"route", `{'rules': [{'matches': [{'path': {'regex': '/a.*'}}], 'redirect': {'prefixRewrite': '/b'}}]}`, "rules[0].redirect.prefix_rewrite", "match by prefix or exact"},
	{"route", `{'rules': [{'matches': [{'methods': ['GET']}], 'redirect': {'host': 'x.y', 'prefixRewrite': '/b'}}]}`, "rules[0].redirect.prefix_rewrite", "has no path"},
	{"route", `{'rules': [{'redirect': {'host': 'a:80'}}]}`, "rules[0].redirect.host", "port has a field of its own"},
	{"route", `{'rules': [{'redirect': {'path': 'a'}}]}`, "rules[0].redirect.path", "is not a path"},
	{"route", `{'rules': [{'redirect': {'scheme': 'ftp'}}]}`, "rules[0].redirect.scheme", "https"},
	{"route", `{'rules': [{'redirect': {'scheme': 'https', 'status': 300}}]}`, "rules[0].redirect.status", "301"},
	{"route", `{'rules': [{'directResponse': {'status': 100}}]}`, "rules[0].direct_response.status", "200"},
	{"route", `{'rules': [{'directResponse': {'status': 204, 'body': 'x'}}]}`, "rules[0].direct_response.body", "has no body"},
	// Policies.
	{"route", policies(`'timeout': {'request': '0.0005s'}`), "rules[0].policies.timeout.request", "whole number of milliseconds"},
	{"route", policies(`'timeout': {'request': '-1s'}`), "rules[0].policies.timeout.request", "0s"},
	{"route", policies(`'timeout': {'request': '90000s'}`), "rules[0].policies.timeout.request", "86400s"},
	{"route", policies(`'timeout': {'request': '1s'}, 'retry': {'other': {'perTryTimeout': '2s'}}`), "rules[0].policies.retry.other.per_try_timeout", "longer than timeout.request"},
	{"route", policies(`'retry': {'idempotent': {'attempts': 0, 'on': ['RETRY_ON_5XX']}}`), "rules[0].policies.retry.idempotent.attempts", "switches retries off"},
	{"route", policies(`'retry': {'idempotent': {'attempts': 11}}`), "rules[0].policies.retry.idempotent.attempts", "10"},
	{"route", policies(`'retry': {'idempotent': {'statusCodes': [200]}}`), "rules[0].policies.retry.idempotent.status_codes[0]", "400"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'host', 'value': 'x'}]}}`), "rules[0].policies.headers.request.set[0].name", "use forward.host_rewrite"},
	{"route", policies(`'headers': {'request': {'add': [{'name': 'Content-Length', 'value': '1'}]}}`), "rules[0].policies.headers.request.add[0].name", "belongs to the connection"},
	{"route", policies(`'headers': {'response': {'remove': ['transfer-encoding']}}`), "rules[0].policies.headers.response.remove[0]", "belongs to the connection"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-penstock-a', 'value': 'x'}]}}`), "rules[0].policies.headers.request.set[0].name", "reserved"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-envoy-a', 'value': 'x'}]}}`), "rules[0].policies.headers.request.set[0].name", "reserved"},
	{"route", policies(`'headers': {'request': {'set': [{'name': ':path', 'value': 'x'}]}}`), "rules[0].policies.headers.request.set[0].name", "must be a header name: lower-case letters"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x_a', 'value': 'x'}]}}`), "rules[0].policies.headers.request.set[0].name", "use -"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-a', 'value': 'a\nb'}]}}`), "rules[0].policies.headers.request.set[0].value", "no line break"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-a', 'value': 'a\u0001b'}]}}`), "rules[0].policies.headers.request.set[0].value", "control character"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-a'}, {'name': 'X-A'}]}}`), "rules[0].policies.headers.request.set[1].name", "already"},
	{"route", policies(`'headers': {'request': {'set': [{'name': 'x-a'}], 'remove': ['x-a']}}`), "rules[0].policies.headers.request.remove[0]", "set by the same policy"},
	{"route", policies(`'rateLimit': {}`), "rules[0].policies.rate_limit.limits", "1"},
	{"route", policies(`'rateLimit': {'limits': [{'name': 'a', 'requests': 1}]}`), "rules[0].policies.rate_limit.limits[0].window", "required"},
	{"route", policies(`'rateLimit': {'limits': [{'name': 'a', 'window': '1s'}]}`), "rules[0].policies.rate_limit.limits[0].requests", "1"},
	{"route", policies(`'rateLimit': {'limits': [{'name': 'a', 'requests': 1, 'window': '1s'}, {'name': 'a', 'requests': 1, 'window': '1s'}]}`), "rules[0].policies.rate_limit.limits[1].name", "already"},
	{"route", policies(`'rateLimit': {'limits': [{'name': 'a', 'requests': 1, 'window': '1s', 'burst': 1, 'algorithm': 'RATE_LIMIT_ALGORITHM_FIXED_WINDOW'}]}`), "rules[0].policies.rate_limit.limits[0].burst", "GCRA only"},
	{"route", policies(`'authentication': {}`), "rules[0].policies.authentication", "asks for nothing"},
	{"route", policies(`'authentication': {'jwt': {'issuer': 'i', 'jwksSecret': 's'}}`), "rules[0].policies.authentication.jwt.audiences", "1"},
	{"route", policies(`'authentication': {'jwt': {'issuer': 'i', 'audiences': ['a']}}`), "rules[0].policies.authentication.jwt", "set exactly one of jwks_secret, jwks"},
	{"route", jwt(`'jwksSecret': 'backends/b'`), "rules[0].policies.authentication.jwt.jwks_secret", "name of a secret"},
	{"route", jwt(`'jwksSecret': 'projects/q/secrets/b'`), "rules[0].policies.authentication.jwt.jwks_secret", "may not leave"},
	{"route", jwt(`'jwks': 'hello'`), "rules[0].policies.authentication.jwt.jwks", "is not a JSON Web Key Set"},
	{"route", jwt(`'jwksSecret': 's', 'consumers': ['c'], 'optional': true`), "rules[0].policies.authentication.jwt.optional", "remove one"},
	{"route", jwt(`'jwksSecret': 's', 'consumers': ['c', 'consumers/c']`), "rules[0].policies.authentication.jwt.consumers[1]", "already"},
	{"route", jwt(`'jwksSecret': 's', 'clockSkew': '1.5s'`), "rules[0].policies.authentication.jwt.clock_skew", "whole number of seconds"},
	{"route", jwt(`'jwksSecret': 's', 'maxLifetime': '1.5s'`), "rules[0].policies.authentication.jwt.max_lifetime", "whole number of seconds"},
	{"route", jwt(`'jwksSecret': 's', 'claimHeaders': [{'claim': 'a', 'header': 'host'}]`), "rules[0].policies.authentication.jwt.claim_headers[0].header", `start with "x-"`},
	{"route", jwt(`'jwksSecret': 's', 'claimHeaders': [{'claim': 'a', 'header': 'x-envoy-a'}]`), "rules[0].policies.authentication.jwt.claim_headers[0].header", "reserved"},
	{"route", jwt(`'jwksSecret': 's', 'claimHeaders': [{'claim': 'a', 'header': 'x-forwarded-for'}]`), "rules[0].policies.authentication.jwt.claim_headers[0].header", "choose another name"},
	{"route", jwt(`'jwksSecret': 's', 'claimHeaders': [{'claim': 'a', 'header': 'x-a'}, {'claim': 'b', 'header': 'x-a'}]`), "rules[0].policies.authentication.jwt.claim_headers[1].header", "already"},
	{"route", jwt(`'jwksSecret': 's', 'claimHeaders': [{'claim': 'a..b', 'header': 'x-a'}]`), "rules[0].policies.authentication.jwt.claim_headers[0].claim", "empty part"},
	// Gateways.
	{"gateway", `{}`, "listeners", "1"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 0}]}`, "listeners[0].port", "1"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 70000}]}`, "listeners[0].port", "65535"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1, 'address': 'localhost'}]}`, "listeners[0].address", "must be an IP address"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1}, {'name': 'a', 'port': 2}]}`, "listeners[1].name", "already"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1}, {'name': 'b', 'port': 1, 'address': '0.0.0.0'}]}`, "listeners[1].port", "0.0.0.0:1 is bound by listeners[0] already"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1, 'protocol': 'LISTENER_PROTOCOL_HTTPS'}]}`, "listeners[0].tls", "needs tls.certificates"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1, 'tls': {'certificates': ['c']}}]}`, "listeners[0].tls", "set protocol: HTTPS"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1, 'hostnames': ['*a.x']}]}`, "listeners[0].hostnames[0]", "wildcard such as"},
	{"gateway", `{'listeners': [{'name': 'a', 'port': 1}], 'policies': {'timeout': {'idle': '0.0001s'}}}`, "policies.timeout.idle", "round it"},
	// Backends.
	{"backend", `{}`, "", "set exactly one of static, dns"},
	{"backend", `{'static': {}}`, "static.endpoints", "1"},
	{"backend", `{'static': {'endpoints': [{'address': 'example.com', 'port': 1}]}}`, "static.endpoints[0].address", "IP address"},
	{"backend", `{'static': {'endpoints': [{'address': '10.0.0.1', 'port': 0}]}}`, "static.endpoints[0].port", "1"},
	{"backend", `{'static': {'endpoints': [{'address': '0.0.0.0', 'port': 1}]}}`, "static.endpoints[0].address", "is not an address of a server"},
	{"backend", `{'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1}, {'address': '10.0.0.1', 'port': 1}]}}`, "static.endpoints[1].address", "already"},
	{"backend", `{'dns': {'hostname': '10.0.0.1', 'port': 1}}`, "dns.hostname", "is an IP address, which needs no DNS; use static"},
	{"backend", `{'dns': {'hostname': 'a b', 'port': 1}}`, "dns.hostname", "hostname"},
	{"backend", `{'dns': {'hostname': 'a.x', 'port': 1}, 'subsets': [{'name': 'a', 'labels': {'k': 'v'}}]}`, "subsets", "DNS name"},
	{"backend", `{'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1}]}, 'subsets': [{'name': 'a', 'labels': {'k': 'v'}}]}`, "subsets[0].labels", "no endpoint carries all of k=v"},
	{"backend", `{'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1}]}, 'subsets': [{'name': 'a'}]}`, "subsets[0].labels", "is empty"},
	{"backend", `{'static': {'endpoints': [{'address': '10.0.0.1', 'port': 1, 'labels': {'k': 'v'}}]}, 'subsets': [{'name': 'a', 'labels': {'k': 'v'}}, {'name': 'a', 'labels': {'k': 'v'}}]}`, "subsets[1].name", "already"},
	{"backend", `{'dns': {'hostname': 'a.x', 'port': 1}, 'connectTimeout': '0s'}`, "connect_timeout", "0s"},
	// Functions.
	{"function", `{'source': 's'}`, "", "set exactly one of lambda, server"},
	{"function", `{'lambda': {'handler': 'a.b'}, 'source': 's'}`, "lambda.runtime", "LAMBDA_RUNTIME_PYTHON"},
	{"function", `{'lambda': {'runtime': 'LAMBDA_RUNTIME_PYTHON', 'handler': 'handler'}, 'source': 's'}`, "lambda.handler", "such as \"app.lambda_handler\""},
	{"function", `{'server': {}, 'source': 's'}`, "server.command", "1"},
	{"function", `{'server': {'command': ['']}, 'source': 's'}`, "server.command[0]", "names the program"},
	{"function", `{'server': {'command': ['a']}, 'source': '/etc'}`, "source", "relative to the functions root"},
	{"function", `{'server': {'command': ['a']}, 'source': 'a/../../b'}`, "source", "leaves the functions root"},
	{"function", `{'server': {'command': ['a']}, 'source': '..'}`, "source", "leaves the functions root"},
	{"function", `{'server': {'command': ['a']}, 'source': '/a.zip'}`, "source", "a folder or a .zip file"},
	{"function", `{'server': {'command': ['a']}, 'source': 'sha256:abc'}`, "source", "64 hexadecimal digits"},
	{"function", `{'server': {'command': ['a'], 'build': ['b'], 'image': 'c'}, 'source': 's'}`, "server.build", "is built already"},
	{"function", `{'server': {'command': ['a'], 'image': 'b c'}, 'source': 's'}`, "server.image", "holds white space"},
	{"function", `{'functions_framework': {'runtime': 'FUNCTIONS_FRAMEWORK_RUNTIME_NODE', 'target': 'a b'}, 'source': 's'}`, "functions_framework.target", "the name of a function in the source"},
	{"function", `{'functions_framework': {'target': 'a'}, 'source': 's'}`, "functions_framework.runtime", ""},
	{"function", `{'azure': {'function': '../x'}, 'source': 's'}`, "azure.function", "the name of a folder"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'PORT': '1'}}`, `env["PORT"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'AWS_LAMBDA_RUNTIME_API': '1'}}`, `env["AWS_LAMBDA_RUNTIME_API"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'AWS_LAMBDA_FUNCTION_NAME': '1'}}`, `env["AWS_LAMBDA_FUNCTION_NAME"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'PENSTOCK_INSTANCE': '1'}}`, `env["PENSTOCK_INSTANCE"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'PENSTOCK_ANYTHING': '1'}}`, `env["PENSTOCK_ANYTHING"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'_X_AMZN_TRACE_ID': '1'}}`, `env["_X_AMZN_TRACE_ID"]`, "set by the runner"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'env': {'a-b': '1'}}`, `env["a-b"]`, "letters, digits and _"},
	{"function", `{'server': {'command': ['a']}, 'source': 's', 'timeout': '1000s'}`, "timeout", "900s"},
	// Consumers and secrets.
	{"consumer", `{}`, "jwt", "required"},
	{"consumer", `{'jwt': {'issuer': 'i'}}`, "jwt.subject", "1"},
	{"secret", `{}`, "", "set exactly one of jwks, certificate"},
	{"secret", `{'jwks': '[]'}`, "jwks", "is not a JSON Web Key Set"},
	{"secret", `{'jwks': '{}'}`, "jwks", "has no keys"},
	{"secret", `{'jwks': '{\"keys\": [1]}'}`, "jwks", "keys[0] is not a JSON object"},
	{"secret", `{'jwks': '{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}'}`, "jwks", "symmetric"},
	{"secret", `{'jwks': '{\"keys\": [{\"kty\": \"XX\"}]}'}`, "jwks", "XX"},
	{"secret", `{'certificate': {'chain': 'hello', 'privateKey': 'x'}}`, "certificate.chain", "holds something that is not PEM"},
}

func TestValidateBadInput(t *testing.T) {
	for _, row := range badInput {
		json := strings.ReplaceAll(strings.ReplaceAll(row.json, `\"`, "\x00"), "'", `"`)
		o := objectOf(t, row.kind, "x", strings.ReplaceAll(json, "\x00", `\"`))
		model.Normalize(o)
		got := model.Validate(o)
		found := false
		for _, p := range got {
			if p.Object != o.GetName() {
				t.Errorf("%s: problem of %q, want %q", row.json, p.Object, o.GetName())
			}
			found = found || p.Field == row.field && strings.Contains(p.Message, row.message)
		}
		if !found {
			t.Errorf("%s %s\nwant %s: …%s…\ngot  %v", row.kind, row.json, row.field, row.message, texts(got))
		}
		if len(got) > 1 {
			t.Errorf("%s %s: %d problems for one mistake: %v", row.kind, row.json, len(got), texts(got))
		}
	}
}

func texts(problems []Problem) []string {
	var out []string
	for _, p := range problems {
		out = append(out, "\n  "+p.Field+": "+p.Message)
	}
	return out
}

// TestValidateReportsAll has several mistakes in one object.
func TestValidateReportsAll(t *testing.T) {
	o := objectOf(t, "route", "x", `{'metadata': {'origin': {'source': 'file', 'file': 'a.yaml', 'line': 7}}, 'hostnames': ['a b'], 'rules': [
		{'matches': [{'path': {'regex': '('}}], 'redirect': {'host': 'c d'}},
		{'matches': [{'path': {'exact': '/a/./b'}}], 'directResponse': {'status': 204, 'body': 'x'}, 'policies': {'timeout': {'idle': '-1s'}}}]}`)
	got := model.Validate(o)
	var fields []string
	for _, p := range got {
		fields = append(fields, p.Field)
		if p.Origin.GetLine() != 7 {
			t.Errorf("%s: no origin", p.Field)
		}
	}
	want := "hostnames[0] rules[1].policies.timeout.idle rules[0].matches[0].path.regex rules[0].redirect.host rules[1].matches[0].path.exact rules[1].direct_response.body"
	if strings.Join(fields, " ") != want {
		t.Errorf("got  %s\nwant %s\n%v", strings.Join(fields, " "), want, texts(got))
	}
	if got := model.Validate(nil); len(got) != 1 {
		t.Errorf("nil object: %v", got)
	}
	if got := model.Validate((*pb.Route)(nil)); len(got) != 1 {
		t.Errorf("nil route: %v", got)
	}
}

func TestValidateGoodInput(t *testing.T) {
	good := `
gateway g {'listeners': [{'name': 'http', 'port': 8080, 'hostnames': ['*.Example.com.', '*']}, {'name': 'https', 'port': 8443, 'protocol': 'LISTENER_PROTOCOL_HTTPS', 'tls': {'certificates': ['c']}}]}
route r {'gateways': ['g'], 'hostnames': ['A.Example.com', ''], 'rules': [{'matches': [{'path': {'prefix': '/a/'}, 'methods': ['get'], 'headers': [{'name': 'X-Env', 'value': {'present': false}}]}, {'path': {'regex': '/v[0-9]+/(users|orders)/[^/]+'}}, {'path': {'textPrefix': '/.'}}], 'forward': {'backends': [{'backend': 'b', 'weight': 9}, {'backend': 'functions/f', 'weight': 1}]}}]}
route rewrite {'rules': [{'matches': [{'path': {'prefix': '/a'}}], 'forward': {'backends': [{'backend': 'b', 'subset': 's'}], 'prefixRewrite': '/', 'hostRewrite': 'x.y:80'}, 'policies': {'timeout': {'request': '0s'}, 'retry': {'other': {'attempts': 0}}, 'headers': {'request': {'set': [{'name': 'x-a', 'value': '100%'}], 'add': [{'name': 'x-b', 'value': 'é'}], 'remove': ['x-b']}}, 'rateLimit': {'limits': [{'name': 'a', 'requests': 5, 'window': '60s', 'burst': 10}]}}}]}
route redirect {'hostnames': ['a.x'], 'rules': [{'redirect': {'host': 'www.a.x'}, 'matches': [{'path': {'exact': '/b'}}]}, {'redirect': {'scheme': 'https'}}]}
route jwt {'rules': [{'directResponse': {'status': 200, 'body': 'ok'}, 'policies': {'authentication': {'jwt': {'issuer': 'i', 'audiences': ['a'], 'jwksSecret': 's', 'claimHeaders': [{'claim': 'a.b', 'header': 'X-User'}], 'clockSkew': '0s', 'maxLifetime': '3600s'}}}}]}
backend b {'static': {'endpoints': [{'address': '10.0.0.1', 'port': 80, 'labels': {'v': '1'}}, {'address': '::1', 'port': 80}]}, 'subsets': [{'name': 's', 'labels': {'v': '1'}}]}
backend dns {'dns': {'hostname': 'Api.Example.com.', 'port': 443}}
function f {'lambda': {'runtime': 'LAMBDA_RUNTIME_PYTHON', 'handler': 'app.lambda_handler'}, 'source': 'a/b', 'env': {'A_B': 'c'}}
function s {'server': {'command': ['./x', '-p'], 'build': ['go', 'build']}, 'source': '.'}
consumer c {'jwt': {'issuer': 'i', 'subject': 's'}}
`
	for _, o := range objects(t, good) {
		if got := model.Validate(o); len(got) > 0 {
			t.Errorf("%s: %v", o.GetName(), texts(got))
		}
		again := proto.CloneOf(o)
		model.Normalize(again)
		if !proto.Equal(again, o) {
			t.Errorf("%s: a second Normalize changes\n%v\nto\n%v", o.GetName(), o, again)
		}
	}
}

func TestValidateKeySets(t *testing.T) {
	p256 := newKey(t, elliptic.P256())
	p384 := newKey(t, elliptic.P384())
	weak, strong := rsaKey(t, 1024), rsaKey(t, 2048)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := func(keys ...jose.JSONWebKey) string {
		b, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, row := range map[string]struct{ jwks, message string }{
		"good": {set(
			jose.JSONWebKey{Key: p256.Public(), KeyID: "a", Algorithm: "ES256", Use: "sig"},
			jose.JSONWebKey{Key: p384.Public(), KeyID: "b"},
			jose.JSONWebKey{Key: strong.Public(), KeyID: "c", Algorithm: "RS256"},
			jose.JSONWebKey{Key: ed.Public(), KeyID: "d", Algorithm: "EdDSA"}), ""},
		"private EC":         {set(jose.JSONWebKey{Key: p256}), "keys[0] holds a private key"},
		"private RSA":        {set(jose.JSONWebKey{Key: strong}), "keys[0] holds a private key"},
		"second":             {set(jose.JSONWebKey{Key: strong.Public()}, jose.JSONWebKey{Key: p256}), "keys[1] holds a private key"},
		"short RSA":          {set(jose.JSONWebKey{Key: weak.Public()}), "1024 bits; at least 2048"},
		"alg and curve":      {set(jose.JSONWebKey{Key: p384.Public(), Algorithm: "ES256"}), `alg "ES256", but such a key is for ES384`},
		"alg and kty":        {set(jose.JSONWebKey{Key: p256.Public(), Algorithm: "RS256"}), "is for ES256"},
		"encryption":         {set(jose.JSONWebKey{Key: strong.Public(), Use: "enc"}), `it is not for signatures (use "enc")`},
		"encryption too":     {set(jose.JSONWebKey{Key: strong.Public(), Use: "enc", Algorithm: "RSA-OAEP"}, jose.JSONWebKey{Key: p256.Public()}), ""},
		"private encryption": {set(jose.JSONWebKey{Key: strong, Use: "enc"}, jose.JSONWebKey{Key: p256.Public()}), "private key"},
		"same kid":           {set(jose.JSONWebKey{Key: p256.Public(), KeyID: "a"}, jose.JSONWebKey{Key: p384.Public(), KeyID: "a"}), ""},
		"off the curve":      {strings.Replace(set(jose.JSONWebKey{Key: p256.Public()}), `"x":"`, `"x":"AA`, 1), "keys[0]"},
	} {
		t.Run(name, func(t *testing.T) {
			got := model.Validate(&pb.Secret{Name: "projects/p/secrets/s", Value: &pb.Secret_Jwks{Jwks: row.jwks}})
			expect(t, got, "jwks", row.message)
		})
	}
}

// expect wants exactly one problem with a field and a part of the message; none
// when the message is "".
func expect(t *testing.T, got []Problem, field, message string) {
	t.Helper()
	if message == "" {
		if len(got) > 0 {
			t.Errorf("got %v, want none", texts(got))
		}
		return
	}
	if len(got) != 1 || got[0].Field != field || !strings.Contains(got[0].Message, message) {
		t.Errorf("got %v, want %s: …%s…", texts(got), field, message)
	}
	for _, p := range got {
		if strings.Contains(p.Message, "PRIVATE") || strings.Contains(p.Message, `"d":`) {
			t.Errorf("the message shows key material: %s", p.Message)
		}
	}
}

func newKey(t *testing.T, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	if bits < 1024 {
		t.Fatal("too small")
	}
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// issue makes a certificate in PEM; parent nil: self-signed.
func issue(t *testing.T, name string, key crypto.Signer, parent *x509.Certificate, by crypto.Signer, from, to time.Time) (*x509.Certificate, string) {
	t.Helper()
	tpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: from, NotAfter: to, IsCA: parent == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, by = tpl, key
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestValidateCertificates(t *testing.T) {
	at := time.Date(2030, 6, 1, 0, 0, 0, 0, time.UTC)
	now = func() time.Time { return at }
	t.Cleanup(func() { now = time.Now })
	from, to := at.Add(-time.Hour), at.Add(time.Hour)
	caKey, key, other := newKey(t, elliptic.P256()), newKey(t, elliptic.P256()), newKey(t, elliptic.P256())
	weak := rsaKey(t, 1024)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, caPEM := issue(t, "ca.x", caKey, nil, nil, from, to)
	_, leaf := issue(t, "a.x", key, ca, caKey, from, to)
	_, expired := issue(t, "a.x", key, ca, caKey, from, at.Add(-time.Minute))
	_, early := issue(t, "a.x", key, ca, caKey, at.Add(time.Minute), to)
	_, weakLeaf := issue(t, "a.x", weak, ca, caKey, from, to)
	_, edLeaf := issue(t, "a.x", ed, ca, caKey, from, to)
	pemKey := func(k any) string {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	for name, row := range map[string]struct{ chain, key, field, message string }{
		"good":         {leaf + caPEM, pemKey(key), "", ""},
		"leaf only":    {leaf, pemKey(key), "", ""},
		"wrong key":    {leaf, pemKey(other), "certificate.private_key", "does not match"},
		"no key":       {leaf, "", "certificate.private_key", "is missing"},
		"bad key":      {leaf, "hello", "certificate.private_key", "unencrypted PEM key"},
		"expired":      {expired, pemKey(key), "certificate.chain", "expired on 2030-05-31T23:59:00Z"},
		"early":        {early, pemKey(key), "certificate.chain", "not valid before"},
		"out of order": {leaf + leaf, pemKey(key), "certificate.chain", "did not sign the one before"},
		"key in chain": {leaf + pemKey(key), pemKey(key), "certificate.chain", `"PRIVATE KEY"; only certificates`},
		"rubbish":      {leaf + "rubbish", pemKey(key), "certificate.chain", "not PEM after 1 certificates"},
		"weak":         {weakLeaf, pemKey(weak), "certificate.chain", "1024 bits"},
		"ed25519":      {edLeaf, pemKey(ed), "certificate.chain", "neither RSA nor ECDSA"},
	} {
		t.Run(name, func(t *testing.T) {
			got := model.Validate(&pb.Secret{Name: "projects/p/secrets/s", Value: &pb.Secret_Certificate{
				Certificate: &pb.CertificateSecret{Chain: row.chain, PrivateKey: row.key},
			}})
			for i := range got {
				got[i].Message = strings.ReplaceAll(got[i].Message, `"PRIVATE KEY"; only`, `"PRIV KEY"; only`)
			}
			expect(t, got, row.field, strings.ReplaceAll(row.message, `"PRIVATE KEY"`, `"PRIV KEY"`))
		})
	}
}
