"""Tells a customer who they are: an AWS Lambda handler behind an HTTP API.

The gateway has checked the token before; its claims come as headers that no
client can set.
"""

import json


def lambda_handler(event, context):
    headers = event.get("headers") or {}
    user = headers.get("x-user-id")
    if not user:
        print("no x-user-id: is this route without authentication?")
        return {"statusCode": 401, "body": "no claims came with the request\n"}
    print(f"account of {user}")
    claims = {"sub": user, "plan": headers.get("x-user-plan", "")}
    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json"},
        "body": json.dumps({"claims": claims, "path": event["rawPath"]}) + "\n",
    }
