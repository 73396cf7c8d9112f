from wiring.kernels.bitpack.op import pack_signs

__all__ = ["pack_signs"]
