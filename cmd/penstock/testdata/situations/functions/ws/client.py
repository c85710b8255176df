# keeps a WebSocket in use for so many seconds
import base64, os, socket, sys, time
host, port = os.environ["GATEWAY"].removeprefix("http://").split(":")
s = socket.create_connection((host, int(port))); t = time.time()
s.sendall(b"GET /ws HTTP/1.1\r\nHost: ws.field.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n")
s.settimeout(5); s.recv(4096)
try:
    while time.time() - t < float(sys.argv[1]):
        s.sendall(b"\x81\x82\0\0\0\0hi")
        if not s.recv(100): print("closed after %.0f s" % (time.time() - t)); break
        time.sleep(0.2)
    else: print("open after %.0f s" % (time.time() - t))
except OSError as e: print("%s after %.0f s" % (e.strerror or e, time.time() - t))
