"""Tasks that submit tasks: worker_client, get_client with secede and rejoin, local futures."""

from distributed import Client, get_client, get_worker, rejoin, secede, worker_client


def fibonacci(n):
    if n < 2:
        return n
    with worker_client() as client:
        a, b = client.gather([client.submit(fibonacci, n - 1), client.submit(fibonacci, n - 2)])
    return a + b


def walk(depth):
    client = get_client()
    if depth == 0:
        return 1
    children = client.map(walk, [depth - 1] * 2, pure=False)
    secede()
    counts = client.gather(children)
    rejoin()
    return 1 + sum(counts)


def apart(n):
    secede()
    return n * n, get_worker().status.name


client = Client()
print("fibonacci", client.submit(fibonacci, 7).result())
print("nodes", client.submit(walk, 3).result())
print("apart", sorted(client.gather(client.map(apart, range(5)))))
