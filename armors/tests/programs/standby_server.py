"""An HTTP server that says its process number. `lock PATH`: it takes a lock before it binds, and ends when it is taken. SIGTERM ends it with status 0. `deaf`:
before it has bound, it hears no SIGTERM."""
import fcntl
import http.server
import os
import signal
import sys


class Teller(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        said = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


if sys.argv[2:3] == ["deaf"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[2:3] == ["lock"]:
    lock = open(sys.argv[3], "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("another one has the lock")
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Teller)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server.serve_forever()
