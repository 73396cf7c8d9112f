"""Signs, flags and bit planes of channels as 64-bit words."""

from wiring.kernels.bitpack.layout import BITS, words
from wiring.kernels.bitpack.op import (
    bit_planes,
    keep_bits,
    pack_bits,
    pack_clipped_signs,
    pack_signs,
    pack_thresholds,
    unpack_signs,
)
from wiring.kernels.bitpack.prepared import PreparedSigns

__all__ = [
    "BITS",
    "PreparedSigns",
    "bit_planes",
    "keep_bits",
    "pack_bits",
    "pack_clipped_signs",
    "pack_signs",
    "pack_thresholds",
    "unpack_signs",
    "words",
]
