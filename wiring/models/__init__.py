"""Any PyTorch network: converted into wired layers, compressed, measured, and turned back."""
