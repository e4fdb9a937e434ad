"""A client of record_server.py that does the same in each of its lives, and stands still at gates until a file says that it may go on.

Arguments: port, directory of the gates, and gates: "request" in the middle of a request, "answer" in the middle of an answer, "rest" after its
stream has ended, "done" when the connection is closed, "second" in the middle of a second connection's answer. With "twisted" what it says depends on its life. Prints the SHA-256 of all
that it was told.
"""
import hashlib
import os
import socket
import sys
import time

port, directory, gates = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
salt = str(os.getpid()).encode() if "twisted" in gates else b""


def gate(name):
    if name in gates:
        print("at", name, flush=True)
        while not os.path.exists(os.path.join(directory, "go-" + name)):
            time.sleep(0.005)


def payload(number, length):
    return hashlib.shake_128(b"request %d" % number + salt).digest(length)


digest = hashlib.sha256()


def read(connection, length):
    while length > 0:
        data = connection.recv(min(length, 1 << 16))
        if not data:
            raise SystemExit("closed too early")
        digest.update(data)
        length -= len(data)


connection = socket.create_connection(("127.0.0.1", port))
for number in range(8):
    asked, told = 100_000, 1_000_000
    bytes_ = payload(number, asked)
    connection.sendall(b"%d %d %d\n" % (number, asked, told) + bytes_[: asked // 2])
    if number == 2:
        gate("request")
    connection.sendall(bytes_[asked // 2 :])
    read(connection, told // 4)
    if number == 5:
        gate("answer")
    read(connection, told - told // 4)
connection.sendall(b"8 0 300000\n")
connection.shutdown(socket.SHUT_WR)
gate("rest")
read(connection, 300_000)
assert connection.recv(1) == b"", "more than was asked for"
connection.close()
gate("done")
if "second" in gates:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(b"9 0 500000\n")
    read(connection, 100_000)
    gate("second")
    read(connection, 400_000)
    connection.close()
print("told", digest.hexdigest(), flush=True)
