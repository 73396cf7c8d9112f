"""What a compiled kernel takes and does, read off its machine code with CUDA's own tools."""

# mypy: disable-error-code="import-untyped"

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)([^;]*);")
SPILLS = ("LDL", "STL")


@dataclass(frozen=True)
class Kernel:
    """`counts` and `loop` say how often each instruction stands in the kernel, and in its
    innermost loop with most work; an operand |x| is written behind it: `FADD|.|`."""

    name: str
    architecture: int
    registers: int
    stack: int
    spills: int
    shared: int
    counts: dict[str, int]
    loop: dict[str, int]

    def share(self, pattern: str) -> float:
        """The part of the loop's instructions that match."""
        hits = sum(n for name, n in self.loop.items() if re.match(pattern, name))
        return hits / max(1, sum(self.loop.values()))

    def count(self, pattern: str) -> int:
        return sum(n for name, n in self.counts.items() if re.match(pattern, name))

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _run(tool: str, *arguments: str) -> str:
    command = [str(TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _loops(code: list[tuple[int, str, str]]) -> list[tuple[int, int]]:
    """Addresses (from, to) of backward branches, but for the endless one behind the end."""
    found = []
    for address, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands) if name.startswith("BRA") else None
        if target and int(target[1], 16) < address:
            found.append((int(target[1], 16), address))
    return found


def _innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [
        (a, b) for a, b in loops if not any((a, b) != o and a <= o[0] and o[1] <= b for o in loops)
    ]


def read(name: str, architecture: int, cubin: bytes, shared: int) -> Kernel:
    """Disassemble a compiled kernel; `shared` is the memory it asks for at its launch."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = USAGE.search(_run("cuobjdump", "-res-usage", file.name))
        text = _run("cuobjdump", "-sass", file.name)
    assert usage, f"no usage of {name}"
    code = [
        (int(found[1], 16), found[2] + ("|.|" if "|" in found[3] else ""), found[3])
        for found in map(INSTRUCTION.search, text.splitlines())
        if found
    ]
    counts = Counter(instruction for _, instruction, _ in code)
    bodies = [
        Counter(name for address, name, _ in code if a <= address <= b)
        for a, b in _innermost(_loops(code))
    ]
    body = max(bodies, key=lambda c: c.total(), default=Counter[str]())
    spills = sum(n for i, n in counts.items() if i.split(".")[0] in SPILLS)
    stack, local = int(usage[2]), int(usage[4])
    return Kernel(
        name, architecture, int(usage[1]), stack + local, spills, shared, dict(counts), dict(body)
    )
