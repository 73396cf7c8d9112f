"""Sums of |w - x| over live edges, and their gradients, without a D × S × M array."""

from wiring.kernels.adder_edges.op import adder_input_gradient, adder_sign_gradient, adder_sums

__all__ = ["adder_input_gradient", "adder_sign_gradient", "adder_sums"]
