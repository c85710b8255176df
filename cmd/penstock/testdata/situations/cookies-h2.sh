echo_backend
# needs Node.js. 100 short cookies are 0.9 kB: the same in one line of HTTP/1.1 are served
check "HTTP/1.1, 150 cookies" '^200$' "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: echo.field.example' -H "Cookie: $(for i in $(seq 150); do printf 'c%d=v%d; ' $i $i; done)" $G/x)"
check "HTTP/2, 90 cookies" '^200$' "$(node cookies-h2.js 90)"
check "HTTP/2, 150 cookies: served, or 431" '^(200|431)$' "$(node cookies-h2.js 150)"
