echo_backend
# base64 in a path (OCSP over GET), object keys with empty parts. By default repeated slashes are
# merged, so that no other spelling of a path gets past a rule for it; a listener can keep them.
c() { curl -s --path-as-is -H 'Host: echo.field.example' "$G/ocsp/MFMw//abc%3D"; }
check "// in a path, by default" '"path":"/ocsp/MFMw/abc%3D"' "$(c)"
edge '{repeated_slashes: KEEP}'
check "// in a path, kept" '"path":"/ocsp/MFMw//abc%3D"' "$(c)"
edge '{}'
