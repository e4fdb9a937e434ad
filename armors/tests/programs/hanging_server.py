"""Answers each line with the same line. Told "hang" it stands still for ever, if this is its first life.

Arguments: port, a file that counts its lives.
"""
import select
import socket
import sys
import time

with open(sys.argv[2], "a+") as lives:
    lives.write("x")
    lives.flush()
    life = lives.tell()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
connections = {listener: b""}
while True:
    for ready in select.select(list(connections), [], [])[0]:
        if ready is listener:
            connections[ready.accept()[0]] = b""
            continue
        said = ready.recv(4096)
        *lines, connections[ready] = (connections[ready] + said).split(b"\n")
        for line in lines:
            if line == b"hang" and life == 1:
                print("standing still", flush=True)
                time.sleep(1e9)
            ready.sendall(line + b"\n")
        if not said:
            del connections[ready]
            ready.close()
