"""What is timed: one file per operation with `cases() -> Iterator[Case]`; found by itself."""
