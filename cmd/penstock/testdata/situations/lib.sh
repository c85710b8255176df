# Of every script: P runs penstock, check compares. Given are PENSTOCK, GATEWAY (a URL),
# ECHO_PORT (of a server on 127.0.0.1 that answers with the request it got, as JSON).
P() { "$PENSTOCK" "$@"; }
G=$GATEWAY
check() { # what, expected (extended regular expression), got
  if printf '%s' "$3" | tr -d '\r' | tr '\n' ' ' | grep -qE -- "$2"; then echo "ok   $1"
  else echo "FAIL $1: expected $2, got: $(printf '%s' "$3" | tr '\n\r' '  ' | cut -c1-160)"; fi
}
echo_backend() {
  P apply -f - >/dev/null <<Y
kind: Backend
name: field-echo
static: {endpoints: [{address: 127.0.0.1, port: $ECHO_PORT}]}
---
kind: Route
name: field-echo
hostnames: [echo.field.example]
rules: [{name: all, forward: {backends: [{backend: field-echo}]}}]
Y
}
# edge SETTINGS: the edge profile of the gateway's listener; {} is the default
edge() {
  printf 'kind: Gateway\nname: edge\nlisteners: [{name: http, address: 127.0.0.1, port: %s, protocol: HTTP, edge: %s}]\n' "${G##*:}" "$1" | P apply -f - >/dev/null
}
