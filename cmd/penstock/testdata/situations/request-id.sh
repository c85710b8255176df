echo_backend
# functions/README.md: "The request id is the caller's x-request-id". A correlation id must reach the backend
check "caller's x-request-id" '"x-request-id":"order-4711"' "$(curl -s -H 'Host: echo.field.example' -H 'X-Request-Id: order-4711' $G/x)"
check "caller's x-request-id, a UUID" '"x-request-id":"3f1b1c1e-0000-4000-8000-000000000001"' "$(curl -s -H 'Host: echo.field.example' -H 'X-Request-Id: 3f1b1c1e-0000-4000-8000-000000000001' $G/x)"
