"""A client of record_server.py that keeps its position in a file: its next life goes on from there. Stands still at gates.

Arguments: port, directory of the gates and of the position.
"""
import hashlib
import os
import socket
import sys
import time

port, directory = int(sys.argv[1]), sys.argv[2]
kept = os.path.join(directory, "position")
pieces, told, length = 5, b"", 2_000_000


def gate(name):
    print("at", name, flush=True)
    while not os.path.exists(os.path.join(directory, "go-" + name)):
        time.sleep(0.005)


if os.path.exists(kept):
    with open(kept, "rb") as file:
        told = file.read()
connection = socket.create_connection(("127.0.0.1", port))
if not told:
    connection.sendall(b"1 5 %d\nhello" % length)
while len(told) < length:
    # As much as is there, but no piece across a gate.
    until = (len(told) * pieces // length + 1) * length // pieces
    while len(told) < until:
        data = connection.recv(min(1 << 16, until - len(told)))
        if not data:
            raise SystemExit("closed too early")
        told += data
    with open(kept + ".new", "wb") as file:
        file.write(told)
    os.rename(kept + ".new", kept)
    gate(str(until * pieces // length))
connection.sendall(b"2 0 0\n")
connection.close()
print("told", hashlib.sha256(told).hexdigest(), flush=True)
