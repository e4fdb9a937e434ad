"""Answers each line with itself; "life" with the number of its life, and "slow" never in its first life, which writes LIVES.slow when it has heard it.

Arguments: port, the file LIVES that counts its lives.
"""
import socket
import sys
import threading
import time

with open(sys.argv[2], "a+") as lives:
    lives.write("x")
    lives.flush()
    life = lives.tell()


def serve(connection):
    for line in connection.makefile("rb"):
        if line == b"life\n":
            line = b"%d\n" % life
        if line == b"slow\n":
            if life == 1:
                open(sys.argv[2] + ".slow", "w").close()
                time.sleep(1e9)
            line = b"slow in life %d\n" % life
        connection.sendall(line)
    connection.close()


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
