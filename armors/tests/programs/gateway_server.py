"""Does what each client asks for in its first line, to show how a connection looks at the server's end.

Argument: port. "who": answers who the client is. "reset": resets the connection. "watch": says on stdout how the client's stream ends. "hash": answers, when
the client has closed its direction, how many bytes there were and their SHA-256. "pour N": N bytes, the same ones in every life.
"""
import hashlib
import socket
import struct
import sys
import threading

PERIOD = bytes((at * 7 + (at >> 8)) & 255 for at in range(1 << 16))


def serve(connection, peer):
    stream = connection.makefile("rb")
    while line := stream.readline().split():
        if line[0] == b"who":
            connection.sendall(f"{peer[0]} {peer[1]} {connection.getpeername()[1]}\n".encode())
        elif line[0] == b"reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stream.close()
            connection.close()
            return
        elif line[0] == b"watch":
            connection.sendall(b"watching\n")
            try:
                count = len(stream.read())
                print(f"closed after {count}", flush=True)
            except OSError as error:
                print(f"ended by {type(error).__name__}", flush=True)
                return
            break
        elif line[0] == b"hash":
            told = stream.read()
            connection.sendall(f"{len(told)} {hashlib.sha256(told).hexdigest()}\n".encode())
            break
        elif line[0] == b"pour":
            left = int(line[1])
            while left > 0:
                connection.sendall(PERIOD[: min(left, len(PERIOD))])
                left -= min(left, len(PERIOD))
    stream.close()
    connection.close()


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(512)
while True:
    threading.Thread(target=serve, args=listener.accept()).start()
