# A raw RESP client on one connection: says the commands of each line of its input at once (separated by "|"), and prints their answers in
# one line when all have come.
import socket
import sys

connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
stream = connection.makefile("rb")


def answer():
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError(f"the connection ended after {line!r}")
    kind, rest = line[:1], line[1:-2].decode()
    if kind == b"$" and rest != "-1":
        text = stream.read(int(rest) + 2)
        return text[:-2].decode()
    if kind == b"*":
        return "[" + " ".join(answer() for _ in range(int(rest))) + "]"
    return line[:-2].decode()


for line in sys.stdin:
    commands = [command.split() for command in line.split("|")]
    said = b""
    for words in commands:
        said += b"*%d\r\n" % len(words)
        for word in words:
            said += b"$%d\r\n%s\r\n" % (len(word), word.encode())
    connection.sendall(said)
    print(" ".join(answer() for _ in commands), flush=True)
