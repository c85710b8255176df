# answers that API Gateway takes: a number as the body, a header that is null (left out)
P apply -f - >/dev/null 2>&1 <<'Y'
kind: Route
name: field-answers
hostnames: [answers.field.example]
rules:
- {name: v2, matches: [{path: {prefix: /v2}}], forward: {backends: [{backend: functions/field-v2}]}}
- {name: v1, matches: [{path: {prefix: /v1}}], forward: {backends: [{backend: functions/field-v1}]}}
---
kind: Function
name: field-v2
lambda: {runtime: PYTHON, handler: app.handler}
source: answers
---
kind: Function
name: field-v1
lambda: {runtime: PYTHON, handler: app.handler, event: REST_API_V1}
source: answers
Y
a() { curl -s -w ' %{http_code}' -H 'Host: answers.field.example' -H "X-Answer: $(printf '%s' "$2" | base64 -w0)" "$G/$1"; }
for v in v1 v2; do
check "$v: text" '^x 200$' "$(a $v '{"statusCode":200,"body":"x"}')"
check "$v: status as text" '^x 201$' "$(a $v '{"statusCode":"201","body":"x"}')"
check "$v: header that is a number" '^x 200$' "$(a $v '{"statusCode":200,"headers":{"x-n":5},"body":"x"}')"
check "$v: body that is a number" '^42 200$' "$(a $v '{"statusCode":200,"body":42}')"
check "$v: header that is null" '^x 200$' "$(a $v '{"statusCode":200,"headers":{"content-type":null},"body":"x"}')"
done
