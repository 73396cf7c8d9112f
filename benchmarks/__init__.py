"""How fast the kernels, whole networks and training steps are, beside PyTorch's own."""
