"""Uploads so many MiB of bytes that repeat nowhere, and prints the whole answer and what it should be."""
import hashlib
import socket
import sys

port, mebibytes = int(sys.argv[1]), int(sys.argv[2])
connection = socket.create_connection(("127.0.0.1", port))
digest = hashlib.sha256()
for number in range(mebibytes):
    piece = hashlib.shake_128(number.to_bytes(8, "little")).digest(1 << 20)
    digest.update(piece)
    connection.sendall(piece)
connection.shutdown(socket.SHUT_WR)
answer = b""
while data := connection.recv(4096):
    answer += data
print(answer.decode().strip() or "no answer", "expected", mebibytes << 20, digest.hexdigest())
