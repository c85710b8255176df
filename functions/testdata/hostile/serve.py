"""Serves the files of its folder."""
import functools
import http.server
import os

http.server.HTTPServer(
    ("127.0.0.1", int(os.environ["PORT"])),
    functools.partial(http.server.SimpleHTTPRequestHandler, directory=os.path.dirname(os.path.abspath(__file__))),
).serve_forever()
