"""An asyncio program: an asynchronous client, coroutines as tasks, results as they come."""

import asyncio

from distributed import Client, as_completed


async def fetch(i):
    await asyncio.sleep(0.02)
    return i * 10


def double(x):
    return 2 * x


async def main():
    async with Client(asynchronous=True) as client:
        futures = client.map(fetch, range(10))
        doubled = client.map(double, futures)
        total = 0
        async for _, result in as_completed(doubled, with_results=True):
            total += result
        print("total", total)
        print("gathered", await client.gather(doubled[:3]))
        print("one", await client.submit(double, 21))
        try:
            await client.submit(double, None)
        except TypeError as error:
            print(type(error).__name__)


asyncio.run(main())
