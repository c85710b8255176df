"""A custom handler for Azure Functions, for the tests: invocation documents."""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def orders(d, h):
    req = d["Data"]["req"]
    return {
        "Outputs": {"res": {
            "statusCode": "201", "headers": {"x-kind": "azure", "x-number": 7, "x-penstock-refused": "forged"},
            "body": {"req": req, "meta": d["Metadata"], "id": h["X-Azure-Functions-InvocationId"], "trace": h["traceparent"],
                     "mode": sys.argv[1], "env": os.environ["FUNCTIONS_WORKER_RUNTIME"]},
        }},
        "Logs": ["took an order"], "ReturnValue": None,
    }


def fails(d, h):
    how = d["Data"]["req"]["Params"]["how"]
    if how == "exit":
        os._exit(3)
    if how == "forks":
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        return {"Outputs": {"res": {"body": {"children": [child.pid]}}}}
    if how == "stubborn":
        return {"Outputs": {"res": {"body": {"children": []}}}}
    if how == "hang":
        time.sleep(3600)
    if how == "big":
        return {"Outputs": {"res": {"body": "x" * (50 << 20)}}}
    if how == "status":
        return {"Outputs": {"res": {"statusCode": "many"}}}
    if how == "header":
        return {"Outputs": {"res": {"headers": {"x-a": "1\r\nx-b: 2"}}}}
    if how == "text":
        return {"Outputs": {"res": "bare"}}
    if how == "rubbish":
        return "not a document"
    raise ValueError("no such order")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        d = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        print("invoked", self.path)
        status = 200
        try:
            answer = {
                "/orders": orders, "/fails": fails, "/returns": lambda d, h: {"ReturnValue": d["Data"]["req"].get("Body")},
                "/silent": lambda d, h: {},
            }[self.path](d, self.headers)
        except ValueError as e:
            print("failed:", e)
            status, answer = 500, {"error": str(e)}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
while "LISTEN_FILE" in os.environ and not os.path.exists(os.environ["LISTEN_FILE"]):
    time.sleep(0.01)
ThreadingHTTPServer(("127.0.0.1", int(os.environ["FUNCTIONS_CUSTOMHANDLER_PORT"])), Handler).serve_forever()
