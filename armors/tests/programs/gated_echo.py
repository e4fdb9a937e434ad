"""An echo server that stands still in the middle of its streams until it may go on.

Arguments: [HOST:]PORT, a directory, and for each of its first lives after how many KiB of a connection it stands still (0: never). It says so by a file
`at-LIFE-N` for the N-th connection that has come there, and goes on when there is `go-LIFE`. Lives are counted in the directory too, wherever they are.
"""
import os
import socket
import sys
import threading
import time

host, port = ("127.0.0.1:" + sys.argv[1]).split(":")[-2:]
directory = sys.argv[2]
with open(os.path.join(directory, "lives"), "a+") as lives:
    lives.write("x")
    lives.flush()
    life = lives.tell()
gate = int(sys.argv[2 + life]) << 10 if len(sys.argv) > 2 + life else 0
arrived, lock = [], threading.Lock()


def serve(connection):
    count = 0
    while data := connection.recv(1 << 15):
        connection.sendall(data)
        before, count = count, count + len(data)
        if before < gate <= count:
            with lock:
                arrived.append(count)
                open(os.path.join(directory, f"at-{life}-{len(arrived)}"), "w").close()
            while not os.path.exists(os.path.join(directory, f"go-{life}")):
                time.sleep(0.005)
    connection.close()


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((host, int(port)))
listener.listen(128)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
