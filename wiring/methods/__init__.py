"""One file, one method, one registered name, one paper. Nothing here is imported by name."""
