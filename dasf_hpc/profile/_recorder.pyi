from collections.abc import Callable
from typing import Any

class Recorder:
    def __init__(
        self, memory: Any, codes: str, timed: bool, renew: Callable[[int, int, int], int], /
    ) -> None: ...
    def record(self, *fields: float) -> None: ...

class Texts:
    def __init__(self, memory: Any, renew: Callable[[int, int, int], int], /) -> None: ...
    def append(self, text: str, /) -> int: ...

class Transitions:
    def __init__(self, memory: Any, renew: Callable[[int, int, int], int], /) -> None: ...
    def record(self, time_ns: int, key: int, states: int, /) -> None: ...

class Listener:
    def append(self, entry: Any, /) -> None: ...

class Thread:
    def started(self, sequence: int, key: Any, at: int, /) -> int: ...
    def stopped(self, sequence: int, message: dict[str, Any] | None, /) -> None: ...

class Ranges:
    def started(self, sequence: int, key: Any, at: int, /) -> int: ...
    def stopped(self, sequence: int, message: dict[str, Any] | None, /) -> None: ...

def listen(
    append: Callable[[Any], None],
    steps: dict[str, dict[str, int]],
    tasks: dict[Any, Any],
    ids: dict[Any, int],
    seen: set[int],
    activities: dict[Any, int],
    transitions: Transitions,
    edges: Recorder,
    keys: Texts,
    define: Callable[[Any], int],
    other: Callable[[Any, int, int, str, str], None],
    failed: Callable[[], None],
    /,
) -> Listener: ...
def thread(
    starts: Recorder,
    stops: Recorder,
    ids: dict[Any, int],
    seen: set[int],
    results: dict[Any, int],
    unknown: Callable[[Any], int],
    ended: Callable[[Any], tuple[int, int, int]],
    lease: object,
    thread: int,
    /,
) -> Thread: ...
def ranges(
    tasks: dict[Any, Any],
    known: dict[str, Any],
    base: int,
    make: Callable[[Any], Any],
    push: Callable[[Any], Any],
    pop: Callable[[], Any],
    /,
) -> Ranges: ...
