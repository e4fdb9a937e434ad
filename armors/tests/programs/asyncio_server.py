"""Answers each line with its SHA-256, with asyncio streams."""
import asyncio, hashlib, sys


async def serve(reader, writer):
    try:
        while line := await reader.readline():
            writer.write(hashlib.sha256(line).hexdigest().encode() + b"\n")
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), limit=1 << 20)
    async with server:
        await server.serve_forever()


asyncio.run(main())
