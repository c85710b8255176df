# RFC 7517 section 5: keys whose kty, curve or members are not understood SHOULD be ignored, not the whole set refused
N='n4EPtAOCc9AlkeQHPzHStgAbgs7bTZLwUBZdR8_KuKPEHLd4rHVTeT-O-XV2jRojdNhxJWTDvNd7nqQ0VEiZQHz_AJmSCpMaJMRBSFKrKb2wqVwGU_NsYOYL-QtiWN2lbzcEe6XC0dApr5ydQLrHqkHHig3RBordaZ6Aj-oBHqFEHYpPe7Tpe-OfVfHd1E6cS6M1FZcD1NNLYD5lFHpPI9bTwJlsde3uhGqC0ZCuEHg8lhzwOHrtIQbS0FVbb9k3-tVTU4fg_3L_vniUFAKwuCLqKnS2BYwdq_mzSnbLY7h_qixoR7jig3__kRhuaxwUkRz5iaiQkqgc5gHdrNP5zw'
RSA="{\"kty\":\"RSA\",\"kid\":\"a\",\"use\":\"sig\",\"alg\":\"RS256\",\"e\":\"AQAB\",\"n\":\"$N\"}"
t() { printf 'kind: Secret\nname: field-keys\njwks: %s\n' "'{\"keys\":[$2]}'" | P validate --offline -f - >out.txt 2>&1 && echo "ok   $1" || echo "FAIL $1: $(head -1 out.txt | cut -c1-150)"; rm -f out.txt; }
t "RSA alone" "$RSA"
t "beside a key for encryption (RSA-OAEP)" "$RSA,{\"kty\":\"RSA\",\"kid\":\"b\",\"use\":\"enc\",\"alg\":\"RSA-OAEP\",\"e\":\"AQAB\",\"n\":\"$N\"}"
t "beside a secp256k1 key" "$RSA,{\"kty\":\"EC\",\"kid\":\"c\",\"use\":\"sig\",\"alg\":\"ES256K\",\"crv\":\"secp256k1\",\"x\":\"Jnq5y2xYHfEvV0JbeQpuvQYgrC7wHUzNy0g6nD2UNCM\",\"y\":\"j2dwYUn0S1NHZKQFSQSPrgEcU9Fsk1BKjRLo6yzYwqU\"}"
t "beside an Ed448 key" "$RSA,{\"kty\":\"OKP\",\"kid\":\"d\",\"use\":\"sig\",\"crv\":\"Ed448\",\"x\":\"X9dEm1m0Yf0s54fsYWrUah2hNCSFpw4fig6nXYDpZ3jt8SR2m0bHBhvWeD3x5Q9s0foavq_oJWGA\"}"
t "beside a key of a later type (AKP)" "$RSA,{\"kty\":\"AKP\",\"kid\":\"e\",\"alg\":\"ML-DSA-44\",\"pub\":\"AAAA\"}"
t "with an x5c that cannot be read" "${RSA%\}},\"x5c\":[\"MIIB\"]}"
