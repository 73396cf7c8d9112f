"""What one evaluation of a network on one image costs, and what its weights take to store.

Energy in picojoule, 45 nm, of Horowitz (*Computing's energy problem*, ISSCC 2014, figure 1.1.9),
as Han et al. (*Learning both weights and connections*, NIPS 2015, table 1) give them for 32 bits:

| operation | pJ | operation | pJ |
|---|---|---|---|
| float32 multiply | 3.7 | 32 bits from or to an 8 KiB cache | 5 |
| float32 add | 0.9 | 32 bits from DRAM | 640 |
| 8-bit add | 0.03 | | |

Horowitz reads 64 bits: 10 pJ from the cache, 1.3 to 2.6 nJ from DRAM, of which 640 is the lower
end for 32. A one-bit XNOR with its share of the population count is in no table: an eighth of an
8-bit add is taken. A look-up is one read of 32 bits from the cache. All other arithmetic, of
bytes too, is priced as float32.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

ENERGY_PJ = {"multiplications": 3.7, "additions": 0.9, "xnors": 0.03 / 8, "lookups": 5.0}
CACHE_PJ, DRAM_PJ = 5.0, 640.0  # of 32 bits
WORD_BITS = 64


@dataclass(frozen=True)
class Cost:
    """Operations of one forward pass of one image, and bits at rest. Costs add up.

    `xnors` are of one bit each. `transforms` counts fast transforms (one Fourier, cosine or
    Walsh-Hadamard transform of one vector, or of one Winograd tile); what they multiply and add
    is in `multiplications` and `additions`. `activation_bits` are moved between operations: each
    value once by what computes it, and once by everything that reads it.
    """

    multiplications: int = 0
    additions: int = 0
    xnors: int = 0
    lookups: int = 0
    weight_bits: int = 0
    index_bits: int = 0
    transforms: int = 0
    activation_bits: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def energy(self) -> float:
        """Picojoule of the operations; `memory_energy` is beside it."""
        return float(sum(price * getattr(self, name) for name, price in ENERGY_PJ.items()))

    @property
    def memory_energy(self) -> float:
        """Picojoule of moving data: weights and indices once from DRAM, activations from and to
        a cache."""
        stored, moved = self.weight_bits + self.index_bits, self.activation_bits
        return (DRAM_PJ * stored + CACHE_PJ * moved) / 32

    @property
    def xnor_words(self) -> int:
        """The XNORs in words of 64 bits, as if they filled all of them."""
        return -(-self.xnors // WORD_BITS)

    def repeated(self, times: int) -> Cost:
        """The operations `times` over; what weighs does so once."""
        at_rest = ("weight_bits", "index_bits")
        return Cost(
            **{
                field.name: getattr(self, field.name) * (1 if field.name in at_rest else times)
                for field in fields(self)
            }
        )

    def to_dict(self) -> dict[str, int | float]:
        """Every count, `energy` and `memory_energy`."""
        return {**asdict(self), "energy": self.energy, "memory_energy": self.memory_energy}


def total(costs: list[Cost]) -> Cost:
    """The sum; Cost() of nothing."""
    return sum(costs, Cost())
