package compile

import (
	"fmt"
	"slices"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"

	"github.com/penstock-gateway/penstock/gateway"
	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// checkScripts are the scripts of the edge-check filters: none, unless the listener has
// several certificates, or its edge profile keeps paths that can be read in two ways or
// refuses header names. They stand before everything that depends on the route. There are two for
// paths because a script sees the route that was chosen before it ran, never another.
func checkScripts(e gateway.Edge) []string {
	var out []string
	if e.StrictSNI {
		out = append(out, sniScript)
	}
	if e.Underscores == pb.HeaderUnderscores_HEADER_UNDERSCORES_REFUSE {
		out = append(out, underscoreScript)
	}
	if e.Keeps() {
		flag := func(name string, on bool) string { return fmt.Sprintf("local %s = %t\n", name, on) }
		out = append(out, flag("keep_slashes", e.KeepSlashes)+flag("keep_semicolons", e.KeepSemicolons)+flag("keep_repeated", e.KeepRepeated)+readingScript, compareScript)
	}
	return out
}

// The statuses by which the local replies tell what the script refused; the client
// gets another one.
const (
	saysAmbiguous   = "460"
	saysHeaderName  = "461"
	saysMisdirected = "462"
)

// sniScript refuses requests for another host than the one that the client named in the
// TLS handshake, by which the certificate was chosen: what is asked of a client there,
// and the certificate that it saw, are those of that host (RFC 9110, section 15.5.20).
// A client that calls an IP address names none (RFC 6066, section 3). It is a script, as
// the expressions of the edge filter cannot ignore case.
const sniScript = `function envoy_on_request(handle)
  local sni = string.lower(handle:streamInfo():requestedServerName())
  local host = string.lower(handle:headers():get(":authority") or "")
  local name = host:gsub(":%d+$", "")
  local right = name == sni
  if sni == "" then right = name:match("^[%d.]+$") or host:match("^%[") end
  if not right then handle:respond({[":status"] = "` + saysMisdirected + `"}, "") end
end
`

const underscoreScript = `function envoy_on_request(handle)
  for name in pairs(handle:headers()) do
    if name:find("_", 1, true) then
      handle:respond({[":status"] = "` + saysHeaderName + `"}, "")
      return
    end
  end
end
`

// Headers between the two scripts.
const (
	ownPathHeader = "x-penstock-own-path"
	ownRuleHeader = "x-penstock-own-rule"
)

// ruleScript is the rule of the route that was chosen. The name of a route ends with
// the number of the match in its rule.
const ruleScript = `local function rule(handle)
  return (handle:streamInfo():routeName():gsub("/[^/]*$", ""))
end
`

// readingScript is gateway.Edge.Reading: it has the route chosen for the other
// reading of a path.
const readingScript = ruleScript + `function envoy_on_request(handle)
  local headers = handle:headers()
  local whole = headers:get(":path")
  local path, query = whole:match("^([^?]*)(.*)$")
  local reading, kinds = path, 0
  local function try(other)
    if other ~= path then reading, kinds = other, kinds + 1 end
  end
  if keep_slashes then
    try((path:gsub("%%2[fF]", "/")))
    try((path:gsub("%%5[cC]", "/")))
  end
  if keep_semicolons then
    try((path:gsub("%%3[bB]", ";"):gsub(";[^/]*", "")))
  end
  if keep_repeated and path:find("//", 1, true) then
    kinds = kinds + 1
  end
  if kinds == 0 then return end
  reading = reading:gsub("//+", "/")
  if kinds > 1 or (reading .. "/"):find("/%.%.?/") then
    handle:respond({[":status"] = "` + saysAmbiguous + `"}, "")
    return
  end
  headers:add("` + ownPathHeader + `", whole)
  headers:add("` + ownRuleHeader + `", rule(handle))
  headers:replace(":path", reading .. query)
  handle:clearRouteCache()
end
`

// compareScript refuses a path whose readings lead to different rules, and puts the
// path as it is back.
const compareScript = ruleScript + `function envoy_on_request(handle)
  local headers = handle:headers()
  local whole = headers:get("` + ownPathHeader + `")
  if whole == nil then return end
  local same = headers:get("` + ownRuleHeader + `") == rule(handle)
  headers:remove("` + ownPathHeader + `")
  headers:remove("` + ownRuleHeader + `")
  headers:replace(":path", whole)
  handle:clearRouteCache()
  if not same then
    handle:respond({[":status"] = "` + saysAmbiguous + `"}, "")
  end
end
`

// removeTwins removes headers that a server which takes "_" for "-" would take for
// one that the gateway sets or removes. (Those of claims are the claims filter's.)
func removeTwins() []*mutationv3.HeaderMutation {
	var out []*mutationv3.HeaderMutation
	for _, name := range slices.Concat(gateway.Vouched, []string{"x-envoy-.*", "x-penstock-.*"}) {
		out = append(out, removeMatching(regex(twin(name))))
	}
	// Of these no spelling is kept, so the shorter expression does, of which Envoy takes
	// longer names: it refuses RE2 programs beyond a size of 100.
	for _, name := range gateway.ClientHeaders {
		if strings.Contains(name, "-") {
			out = append(out, removeMatching(regex(strings.ReplaceAll(name, "-", "[_-]"))))
		}
	}
	return out
}

// twin matches a name with at least one of its hyphens written as "_".
func twin(name string) string {
	parts := strings.Split(name, "-")
	var ways []string
	for i := 1; i < len(parts); i++ {
		// The i-th hyphen is the first that differs.
		ways = append(ways, strings.Join(parts[:i], "-")+"_"+strings.Join(parts[i:], "[_-]"))
	}
	return strings.Join(ways, "|")
}
