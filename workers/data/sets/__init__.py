"""One file, one data set, one registered name. Nothing here is imported by name."""
