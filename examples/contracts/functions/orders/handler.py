"""A custom handler for Azure Functions: it answers invocation documents."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        invocation = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        req = invocation["Data"]["req"]
        body = json.dumps({
            "Outputs": {"res": {"statusCode": 200, "body": {"order": int(req["Params"]["id"]), "method": req["Method"]}}},
            "Logs": ["order " + req["Params"]["id"]],
            "ReturnValue": None,
        }).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["FUNCTIONS_CUSTOMHANDLER_PORT"])), Handler).serve_forever()
