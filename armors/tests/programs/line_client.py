# Says each line of its input on one connection and prints the line that comes back.
import socket
import sys

connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
stream = connection.makefile("rb")
for line in sys.stdin:
    connection.sendall(line.encode())
    print(stream.readline().decode().rstrip("\n"), flush=True)
