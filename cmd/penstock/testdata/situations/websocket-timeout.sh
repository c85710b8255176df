# an upgraded connection in use must outlive the time for one request (or have a limit of its own)
P apply -f - >/dev/null 2>&1 <<'Y'
kind: Function
name: field-ws
server: {command: [python3, srv.py]}
source: ws
timeout: 1s
---
kind: Route
name: field-ws
hostnames: [ws.field.example]
rules: [{name: a, forward: {backends: [{backend: functions/field-ws}]}}]
policies: {timeout: {request: 0s}}
Y
check "WebSocket in use for 3 s, function timeout 1 s" '^open' "$(python3 functions/ws/client.py 3)"
