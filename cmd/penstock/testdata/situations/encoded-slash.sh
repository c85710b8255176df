echo_backend
# An API whose ids hold a slash: /projects/GROUP%2FNAME (RFC 3986 2.2: %2F and / differ). By
# default such paths are refused, because backends read them in two ways, and the answer says
# why; where a listener keeps them the backend gets what was sent.
c() { curl -s --path-as-is -w ' %{http_code}' -H 'Host: echo.field.example' "$G$1"; }
check "%2F, by default" 'PK-EDGE-ENCODED-SLASH.* 400$' "$(c /projects/group%2Fname)"
check "%5C, by default" 'PK-EDGE-ENCODED-SLASH.* 400$' "$(c /a%5Cb)"
check ";, by default"   'PK-EDGE-SEMICOLON.* 400$' "$(c '/a;v=1/b')"
check "%3B, by default" 'PK-EDGE-SEMICOLON.* 400$' "$(c '/a%3Bv=1')"
edge '{encoded_slashes: KEEP, semicolons: KEEP}'
check "%2F, kept" '"path":"/projects/group%2Fname".* 200$' "$(c /projects/group%2Fname)"
check "%5C, kept" '"path":"/a%5Cb".* 200$' "$(c /a%5Cb)"
check ";, kept"   '"path":"/a;v=1/b".* 200$' "$(c '/a;v=1/b')"
check "%3B, kept" '"path":"/a%3Bv=1".* 200$' "$(c '/a%3Bv=1')"
edge '{}'
