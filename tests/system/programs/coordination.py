"""Tasks that talk to each other: a queue, a variable, a lock, an event, priorities, annotations."""

import dask
from distributed import Client, Event, Lock, Queue, Variable, fire_and_forget


def produce(queue, numbers):
    for n in numbers:
        queue.put(n)
    return len(numbers)


def consume(queue, count):
    return sum(queue.get(timeout=30) for _ in range(count))


def raise_to(variable, value):
    with Lock("raise"):
        if variable.get() < value:
            variable.set(value)
    return value


def leave_word(queue):
    queue.put("done")


if __name__ == "__main__":
    client = Client()
    queue, last = Queue("numbers"), Queue("last")
    highest = Variable("highest")
    highest.set(0)
    made = client.submit(produce, queue, list(range(20)), priority=10)
    print("consumed", client.submit(consume, queue, 20).result(), made.result())
    print("raised", sorted(client.gather(client.map(raise_to, [highest] * 6, range(6)))))
    print("highest", highest.get())
    fire_and_forget(client.submit(leave_word, last))
    print(last.get(timeout=30))
    event = Event("go")
    event.set()
    with dask.annotate(retries=1, priority=3):
        print(client.compute(dask.delayed(lambda: event.wait(5))()).result())
