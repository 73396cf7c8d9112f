"""Operations worth a kernel of their own: one folder each, the definition in `op.py`."""
