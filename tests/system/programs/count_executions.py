"""A scheduler's own count of what was executed, for tests to compare a trace with.

Preloaded by the scheduler; when that closes it writes how often each key was executed, as workers
told it, into the folder that ``EXECUTION_COUNTS`` names.
"""

import json
import os
from collections import Counter
from pathlib import Path

from distributed.diagnostics.plugin import SchedulerPlugin


class CountExecutions(SchedulerPlugin):
    name = "count-executions"

    def __init__(self):
        self.counts = Counter()

    def transition(self, key, start, finish, *args, **kwargs):
        # to memory or erred with its result or exception; to released where it is tried again, or
        # asked for that itself, as a shuffle's tasks may
        why = str(kwargs.get("stimulus_id"))
        again = finish == "released" and why.startswith(("task-erred", "reschedule"))
        if start == "processing" and (finish in ("memory", "erred") or again):
            self.counts[str(key)] += 1

    async def close(self):
        path = Path(os.environ["EXECUTION_COUNTS"], f"{os.getpid()}.json")
        path.write_text(json.dumps(self.counts))


def dask_setup(scheduler):
    scheduler.add_plugin(CountExecutions())
