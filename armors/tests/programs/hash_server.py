"""Reads each connection to its end and answers the SHA-256 of what it was told.

Arguments: port, a file that counts its lives, and for each of the first lives after how many MiB it stands still for ever.
"""
import hashlib
import socket
import sys
import threading
import time

with open(sys.argv[2], "a+") as lives:
    lives.write("x")
    lives.flush()
    life = lives.tell()
stand_still = int(sys.argv[2 + life]) << 20 if len(sys.argv) > 2 + life else None


def serve(connection):
    digest, count = hashlib.sha256(), 0
    while data := connection.recv(1 << 16):
        digest.update(data)
        count += len(data)
        if stand_still and count >= stand_still:
            print(f"life {life} stands still", flush=True)
            time.sleep(1e9)
    connection.sendall(f"{count} {digest.hexdigest()}\n".encode())
    connection.close()


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
