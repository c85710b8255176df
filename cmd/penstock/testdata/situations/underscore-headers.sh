echo_backend
# browsers with a tracing SDK send such headers; RFC 9110 5.6.2 allows "_" in a field name
check "header name with _, HTTP/1.1" '"method"' "$(curl -s -H 'Host: echo.field.example' -H 'ot-baggage-acme-trace_id: 1' $G/x)"
check "header name with _, HTTP/2" ' 200$' "$(curl -s --http2-prior-knowledge -o /dev/null -w ' %{http_code}' -H 'Host: echo.field.example' -H 'ot-baggage-acme-trace_id: 1' $G/x)"
