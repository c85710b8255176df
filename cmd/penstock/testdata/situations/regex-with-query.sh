# a path expression that asks for "?" can never match: the path has no query. exact, prefix and regex are refused for that
for r in '/item\\?id=.*' '/item[?]id=1' '/a//b' '/caf\xe9' '/a b'; do
printf 'kind: Route\nname: field-rx\nhostnames: [rx.field.example]\nrules: [{name: a, matches: [{path: {regex: "%s"}}], direct_response: {status: 200, body: ok}}]\n' "$r" | P validate --offline -f - >/dev/null 2>&1 && echo "FAIL regex $r accepted" || echo "ok   regex $r refused"; done
