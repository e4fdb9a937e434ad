"""Answers requests on each connection and records what becomes of it.

A request is a line with a number and two lengths, and as many bytes as the first says; it is answered with as many bytes as the second
says, which depend on the number alone. In the record, a file that is appended to: "accept", then "end", how many bytes were heard and their
SHA-256, or "reset" in its place.
"""
import hashlib
import socket
import sys
import threading


def answer(number, length):
    return hashlib.shake_128(b"answer %d" % number).digest(length)


def serve(connection, record):
    digest, count, heard = hashlib.sha256(), 0, b""

    def more():
        nonlocal count, heard
        data = connection.recv(1 << 16)
        digest.update(data)
        count += len(data)
        heard += data
        return data

    record("accept")
    try:
        while True:
            while b"\n" not in heard:
                if not more():
                    raise EOFError
            line, heard = heard.split(b"\n", 1)
            number, asked, told = map(int, line.split())
            while len(heard) < asked:
                if not more():
                    raise EOFError
            heard = heard[asked:]
            connection.sendall(answer(number, told))
    except EOFError:
        connection.close()
        record(f"end {count} {digest.hexdigest()}")
    except OSError:
        record("reset")


def main():
    lock = threading.Lock()

    def record(line):
        with lock, open(sys.argv[2], "a") as file:
            file.write(line + "\n")

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen()
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], record)).start()


main()
