"""Every kernel against PyTorch's own operation.

python -m benchmarks.kernels [--op OP] [--threads N] [--isa SET] [--json] [--seconds S]
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from benchmarks import cases as case_files
from benchmarks.harness import Case, arguments, cap_torch, main_guard, run
from wiring.errors import UnknownNameError


def files(package: ModuleType = case_files) -> list[str]:
    """The case files, by name."""
    return sorted(found.name for found in pkgutil.iter_modules(package.__path__))


def find(op: str | None, package: ModuleType = case_files) -> Iterator[Case]:
    """The cases of all files; of one file or one operation where `op` names it.

    Made one by one, so that the tensors of but one case exist at a time. Raises UnknownNameError
    after the last file where nothing has that name.
    """
    names = files(package)
    found = op is None or op in names
    for name in [op] if op is not None and op in names else names:
        for case in importlib.import_module(f"{package.__name__}.{name}").cases():
            if op in (None, name, case.op):
                found = True
                yield case
    if not found:
        raise UnknownNameError(f"no case is of operation '{op}'; files are {', '.join(names)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = arguments("Time every kernel against PyTorch's own operation.")
    parser.add_argument("--op", help="one operation, or one file of benchmarks/cases")
    options = parser.parse_args(given)
    cap_torch(options.isa, "benchmarks.kernels", given)
    return main_guard(lambda: run(find(options.op), options))


if __name__ == "__main__":
    sys.exit(main())
