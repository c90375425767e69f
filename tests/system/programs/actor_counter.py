"""A parameter server and a counter as actors, called by the script and by tasks."""

from distributed import Client, wait


class Parameters:
    def __init__(self, size):
        self.values = [0.0] * size

    def update(self, at, by):
        self.values[at % len(self.values)] += by
        return sum(self.values)

    def read(self):
        return list(self.values)

    async def mean(self):
        return sum(self.values) / len(self.values)

    def fail(self):
        raise LookupError("no such parameter")


class Counter:
    total = 0

    def add(self, n):
        self.total += n
        return self.total


def learn(parameters, counter, step):
    parameters.update(step, step / 4).result()
    return counter.add(1).result()


if __name__ == "__main__":
    client = Client()
    parameters = client.submit(Parameters, 4, actor=True).result()
    counter = client.submit(Counter, actor=True).result()
    for step in range(6):
        parameters.update(step, 1.0).result()
    steps = [client.submit(learn, parameters, counter, step) for step in range(8)]
    wait(steps)
    print("values", parameters.read().result())
    print("mean", parameters.mean().result())
    print("counted", counter.add(0).result(), counter.total)
    try:
        parameters.fail().result()
    except LookupError as error:
        print("failed", error)
    client.close()
