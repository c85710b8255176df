echo_backend
# claims with a dot in their name: RFC 7519 4.2 recommends such names (URIs); the header must come, or apply must refuse
P apply -f - > out.txt 2>&1 <<'Y'
kind: Route
name: field-claims
hostnames: [claims.field.example]
rules: [{name: all, forward: {backends: [{backend: field-echo}]}}]
policies:
  authentication:
    jwt:
      issuer: https://dev.penstock.local
      audiences: [penstock-dev]
      jwks_secret: dev-issuer
      claim_headers:
      - {claim: "https://shop.example/tenant", header: x-tenant}
      - {claim: "acme.io", header: x-acme}
      - {claim: plan, header: x-plan}
Y
T=$(P token --subject ann --claim https://shop.example/tenant=t1 --claim acme.io=a1 --claim plan=gold)
B=$(curl -s -H 'Host: claims.field.example' -H "Authorization: Bearer $T" $G/x)
check "plain claim" '"x-plan":"gold"' "$B"
if grep -q error out.txt; then echo "ok   refused: $(head -1 out.txt)"; else
check "claim named by a URI" '"x-tenant":"t1"' "$B"
check "claim with a dot" '"x-acme":"a1"' "$B"; fi
rm -f out.txt
