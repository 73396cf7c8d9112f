"""One kind of figure a file, found by its name."""
