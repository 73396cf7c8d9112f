"""Registers, spills and instructions of every Triton kernel, from its machine code; no GPU needed.

python -m tests.gpu.report [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel and read it.")
    parser.add_argument("--json", action="store_true", help="all figures, as JSON")
    options = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        from tests.gpu.compile_worker import figures

        rows = figures()
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'kernel':75} {'regs':>4} {'spills':>6} {'smem':>6} {'instr':>5}  loop")
    for name, row in rows.items():
        if "error" in row:
            print(f"{name:75} {row['error']}")
            continue
        loop = Counter(row["loop"])
        most = ", ".join(f"{n} {instruction}" for instruction, n in loop.most_common(4))
        size, all_ = sum(loop.values()), sum(row["counts"].values())
        print(
            f"{name:75} {row['registers']:4} {row['spills']:6} {row['shared']:6} {all_:5}  "
            f"{size}: {most}"
        )


if __name__ == "__main__":
    main()
