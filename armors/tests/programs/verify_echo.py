"""Sends bytes over several connections to an echo server, and compares what comes back, byte for byte.

Usage: verify_echo.py [HOST:]PORT CONNECTIONS [BYTES]. Says "all connected" once they are. Each connection then carries so many bytes, or as many as it can
until SIGTERM. At the end it says "identical", or what was not.
"""
import signal
import socket
import sys
import threading

host, port = ("127.0.0.1:" + sys.argv[1]).split(":")[-2:]
connections = int(sys.argv[2])
length = int(sys.argv[3]) if len(sys.argv) > 3 else 1 << 62
PERIOD = 1 << 16
failures = []
enough = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: enough.set())


def talk(number, connected):
    try:
        line = socket.create_connection((host, int(port)))
        connected.wait()
        period = bytes((number * 31 + at * 7 + (at >> 8)) & 255 for at in range(PERIOD))
        period = memoryview(period * 2)
        said = [0]

        def say():
            size = 1 + number
            while said[0] < length:
                size = size * 5 % 30011 + 1
                at, size = said[0] % PERIOD, min(size, length - said[0])
                line.sendall(period[at : at + size])
                said[0] += size
                if enough.is_set():
                    break
            line.shutdown(socket.SHUT_WR)

        saying = threading.Thread(target=say)
        saying.start()
        heard = 0
        while piece := line.recv(PERIOD):
            if piece != period[heard % PERIOD : heard % PERIOD + len(piece)]:
                failures.append(f"connection {number}: other bytes after {heard}")
                return
            heard += len(piece)
        saying.join()
        if heard != said[0] or heard == 0:
            failures.append(f"connection {number}: {heard} of {said[0]} bytes came back")
    except OSError as error:
        failures.append(f"connection {number}: {error}")
        # Nobody waits for one that never came.
        connected.abort()
    except threading.BrokenBarrierError:
        pass


connected = threading.Barrier(connections + 1)
threads = [threading.Thread(target=talk, args=(number, connected)) for number in range(connections)]
for thread in threads:
    thread.start()
try:
    connected.wait()
    print("all connected", flush=True)
except threading.BrokenBarrierError:
    pass
for thread in threads:
    thread.join()
print("; ".join(failures) or "identical", flush=True)
