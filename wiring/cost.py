"""What one evaluation of a network on one image costs, and what its weights take to store.

Energy per operation in picojoule, 45 nm (Horowitz, *Computing's energy problem*, ISSCC 2014):
float32 multiply 3.7, float32 add 0.9, 8-bit add 0.03, 32-bit read from an 8 KiB cache 5. A
one-bit XNOR with its share of the population count is taken as an eighth of an 8-bit add.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

ENERGY_PJ = {"multiplications": 3.7, "additions": 0.9, "xnors": 0.03 / 8, "lookups": 5.0}


@dataclass(frozen=True)
class Cost:
    """Operations of one forward pass of one image, and bits at rest. Costs add up."""

    multiplications: int = 0
    additions: int = 0
    xnors: int = 0
    lookups: int = 0
    weight_bits: int = 0
    index_bits: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def energy(self) -> float:
        """Picojoule of the operations (memory traffic is not counted)."""
        return float(sum(price * getattr(self, name) for name, price in ENERGY_PJ.items()))

    def to_dict(self) -> dict[str, int | float]:
        """Every count, and `energy`."""
        return {**asdict(self), "energy": self.energy}


def total(costs: list[Cost]) -> Cost:
    """The sum; Cost() of nothing."""
    return sum(costs, Cost())
