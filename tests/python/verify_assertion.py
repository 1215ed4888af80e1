"""Verifies an assertion with PyJWT, as an application would, and prints its claims.

usage: verify_assertion.py JWKS-JSON TOKEN AUDIENCE
"""

import json
import sys

import jwt

keys, token, audience = sys.argv[1:]
key = jwt.PyJWKSet.from_json(keys)[jwt.get_unverified_header(token)["kid"]]
claims = jwt.decode(
    token,
    key.key,
    algorithms=[key.algorithm_name],
    audience=audience,
    options={"require": ["exp", "iat", "iss", "aud", "sub", "jti"]},
)
print(json.dumps(claims))
