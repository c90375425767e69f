"""Keeps what is used again on the cluster, and replaces parts of it in a loop."""

import dask
import dask.array as da
from distributed import Client, wait

client = Client()
field = da.ones((200, 200), chunks=(100, 100))
field = client.persist(field)
wait(field)
for _step in range(4):
    field = client.persist(field + da.roll(field, 1, axis=0) / 2)
    wait(field)
print(float(field.sum().compute()))
left, right = dask.persist(field[:100], field[100:] * 2)
print(float(da.concatenate([left, right]).mean().compute()))
client.publish_dataset(field=field)
print(client.get_dataset("field").shape, client.list_datasets())
client.unpublish_dataset("field")
graph = {"a": 1, "b": (sum, ["a", 2]), "c": (pow, "b", 2)}
print(client.get(graph, "c"))
