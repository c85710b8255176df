# the default port of the scheme does not belong in Location (Gateway API, HTTPRequestRedirectFilter.port)
P apply -f - >/dev/null <<'Y'
kind: Route
name: field-redirect
hostnames: [redirect.field.example]
rules:
- {name: a, matches: [{path: {exact: /a}}], redirect: {scheme: https, status: 301}}
- {name: b, matches: [{path: {exact: /b}}], redirect: {scheme: http}}
- {name: c, matches: [{path: {exact: /c}}], redirect: {scheme: https, host: www.field.example}}
- {name: d, matches: [{path: {exact: /d}}], redirect: {scheme: https, host: www.field.example, port: 443}}
Y
l() { curl -si -H "Host: redirect.field.example" "$G$1" | grep -i '^location'; }
check "scheme https" 'https://redirect.field.example/a *$' "$(l /a)"
check "scheme http"  'http://redirect.field.example/b *$' "$(l /b)"
check "scheme https, host" 'https://www.field.example/c *$' "$(l /c)"
check "scheme https, host, port 443" 'https://www.field.example/d *$' "$(l /d)"
