# An HTTP/1.1 client that keeps one connection: gets the path of each line of its input and prints status, date, own port and body.
import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.connect()
connection.auto_open = False
for line in sys.stdin:
    connection.request("GET", line.strip())
    response = connection.getresponse()
    body = response.read().decode()
    port = connection.sock.getsockname()[1]
    print(response.status, response.getheader("Date"), port, body, sep="|", flush=True)
