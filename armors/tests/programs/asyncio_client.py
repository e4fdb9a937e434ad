"""Sends lines and checks each answer."""
import asyncio, hashlib, random, sys


async def main():
    port, rounds, seed = map(int, sys.argv[1:4])
    numbers = random.Random(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    assert writer.get_extra_info("peername") == ("127.0.0.1", port), writer.get_extra_info("peername")
    for _ in range(rounds):
        line = numbers.randbytes(numbers.randrange(1, 4000)).hex().encode() + b"\n"
        writer.write(line)
        answer = await reader.readline()
        assert answer.decode().strip() == hashlib.sha256(line).hexdigest(), (len(line), answer)
        await asyncio.sleep(0.001)
    writer.close()
    await writer.wait_closed()


asyncio.run(main())
