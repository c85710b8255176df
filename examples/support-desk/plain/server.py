"""A plain upstream that Penstock only knows by its address.

python3 server.py PORT [ADDRESS]
"""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One segment per answer: two would meet Nagle's algorithm and a delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return body

    def answer(self):
        body = self.body()
        document = {
            "upstream": "plain",
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        if body:
            document["body"] = body.decode("utf-8", "replace")
        data = (json.dumps(document) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.wfile.flush()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, format, *args):
        print(f"{self.client_address[0]} {format % args}", flush=True)


def main():
    if len(sys.argv) not in (2, 3) or not sys.argv[1].isdigit():
        sys.exit("usage: python3 server.py PORT [ADDRESS]")
    address = (sys.argv[2] if len(sys.argv) == 3 else "127.0.0.1", int(sys.argv[1]))
    try:
        server = ThreadingHTTPServer(address, Handler)
    except OSError as e:
        sys.exit(f"cannot listen on {address[0]}:{address[1]}: {e.strerror}")
    server.daemon_threads = True
    print("plain upstream listens on %s:%d" % server.server_address[:2], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
