"""A search with futures: results as they come, some fail, some are tried again."""

import os
import tempfile

from distributed import Client, as_completed, wait


def score(x, y):
    return (x - 3) ** 2 + (y + 1) ** 2


def shaky(path, x):
    try:
        os.close(os.open(f"{path}/{x}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return x
    raise OSError("not the first time")


def broken(x):
    return 1 / (x - 2)


if __name__ == "__main__":
    client = Client()
    grid = [(x, y) for x in range(-4, 5, 2) for y in range(-4, 5, 2)]
    futures = {client.submit(score, x, y): (x, y) for x, y in grid}
    best = min((future.result(), futures[future]) for future in as_completed(futures))
    print("best", best)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = os.path.abspath(folder)  # noqa: PTH100
        again = client.map(shaky, [path] * 5, range(5), retries=2)
        print("again", client.gather(again))
    tried = client.map(broken, range(4), pure=False)
    wait(tried)
    print("tried", [f.status for f in tried], type(tried[2].exception()).__name__)
    after = client.submit(sum, tried[:2])
    last = client.submit(abs, tried[2])
    print("after", after.result(), type(last.exception()).__name__)
    [data] = client.scatter([list(range(1000))], broadcast=True)
    print("scattered", client.submit(len, data).result())
    names = client.run(lambda dask_worker: dask_worker.status.name)
    print("workers", len(names))
    client.close()
