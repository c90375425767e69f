"""What the package is about."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Gather:
    name: str
    traces: list = field(default_factory=list)

    @classmethod
    def make(cls, number):
        return cls(f"gather-{number}", [float(number * i % 7) for i in range(50)])

    def without(self, value):
        return replace(self, traces=[t for t in self.traces if t != value])
