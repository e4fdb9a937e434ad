"""An asyncio server and many clients in one event loop: a connect that blocked would stop the server as well."""
import asyncio
import socket
import sys


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def client(host, port, number):
    reader, writer = await asyncio.open_connection(host, port)
    assert writer.get_extra_info("peername")[:2] == (host, port)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sent = bytes([number % 256]) * 300_000
    writer.write(sent)
    writer.write_eof()
    received = await reader.read()
    assert received == sent, (number, len(received))
    writer.close()
    await writer.wait_closed()


async def main(host):
    server = await asyncio.start_server(echo, host, 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        await asyncio.gather(*(client(host, port, number) for number in range(20)))
    try:
        await asyncio.open_connection(host, port + 1 if port < 65535 else 1)
    except ConnectionRefusedError:
        return
    sys.exit("nobody should listen there")


asyncio.run(main(sys.argv[1]))
