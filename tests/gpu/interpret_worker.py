"""Runs the cases through Triton's interpreter; prints {name: what is wrong} as JSON."""

from __future__ import annotations

import json
import os
import sys
import traceback

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is decorated

import torch

from tests.gpu.cases import Case, cases
from tests.gpu.compare import difference, expected, settings


def check(case: Case) -> str:
    try:
        with settings(case):
            result = case.kernel()(*case.arguments())
    except Exception:
        return traceback.format_exc(limit=-3)
    return difference(case, result, expected(case))


def main() -> None:
    torch.set_num_threads(1)
    # Fills what no kernel writes with NaN, or the largest integer.
    torch.use_deterministic_algorithms(True, warn_only=True)
    wrong = {case.name: check(case) for case in cases()}
    json.dump(wrong, sys.stdout)


if __name__ == "__main__":
    main()
