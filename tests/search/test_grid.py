"""Every operator and every rule on every space: they run, or say in one sentence why not.

`python -m tests.search.test_grid` writes docs/grid.md, which the tests hold against what runs.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from search.spaces.base import SPACES
from search.spaces.layered import LayeredSpace
from wiring.errors import WiringError
from wiring.graph.driving import attach
from wiring.graph.edges import EDGE_OPS
from wiring.graph.rules import EDGE_RULES
from wiring.network import ImageShape, ModelSpec, Network, build_network

PAGE = Path(__file__).parents[2] / "docs" / "grid.md"
OPS, RULES = EDGE_OPS.names(), EDGE_RULES.names()
# Rules run with an operator of real and one of binary weights, operators with one rule: every pair
# would be thousands of trainings.
RULES_WITH, OPS_WITH = ("dense", "xnor"), "dnw"
TIED = [op for op in OPS if EDGE_OPS.get(op).tied]
SINGLE = [rule for rule in RULES if EDGE_RULES.get(rule).needs_own_weights]
IMAGE, CLASSES, BATCH = ImageShape(channels=3, side=8), 4, 4
# The least that a space can be asked for; layered ones are narrow besides.
SMALLEST: dict[str, dict[str, Any]] = {
    "mobilenet-graph": {"size": "eighth"},
    "randwire": {"nodes": 4},
}

PAIRS = list(
    dict.fromkeys(
        [(rule, op) for rule in RULES for op in RULES_WITH] + [(OPS_WITH, op) for op in OPS]
    )
)


def _named(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


HEAD = f"""# Which operator and rule run on which space

On every space, at its smallest size, `tests/search/test_grid.py` trains each rule with operators
{_named(RULES_WITH)}, and each operator with the rule `{OPS_WITH}`, for a
step (operators of several stages for one in each), and evaluates. ✓: it runs. Where something does
not, it is named, and below the table stands what it says.

Rules that set single weights or read their gradients ({_named(SINGLE)})
are refused everywhere with operators whose edges have no weight of their own
({_named(TIED)}).

Written by `python -m tests.search.test_grid`.

"""


def smallest(name: str, folder: Path) -> dict[str, Any]:
    """Options of the smallest network of a space."""
    options = SMALLEST.get(name, {})
    if name == "graph-file":
        path = folder / "graph.json"
        links = [{"source": s, "target": t} for s, t in ("ac", "bc", "ad", "bd", "ce", "de")]
        nodes = [{"id": node} for node in "abcde"]
        path.write_text(json.dumps({"directed": True, "graph": {}, "nodes": nodes, "edges": links}))
        options = {"path": str(path)}
    narrow = {"width": 0.05} if issubclass(SPACES.get(name), LayeredSpace) else {}
    return {**narrow, **options}


def hurried(spec: ModelSpec) -> ModelSpec:
    """With two steps of a fixed solver where the space has an adaptive one, for time."""
    if spec.topology.dynamics is None or spec.topology.dynamics.kind != "continuous":
        return spec
    dynamics = spec.topology.dynamics.replace(solver="euler", step_size=0.5)
    topology = spec.topology.model_copy(update={"dynamics": dynamics})
    return spec.model_copy(update={"topology": topology})


def one_step(network: Network) -> None:
    """A training step and an evaluation, whose numbers must be finite."""
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, IMAGE.channels, IMAGE.side, IMAGE.side, generator=generator)
    attach(network, optimizer, steps=2, data=lambda: [x])
    for _ in range(2 if network.graph.staged else 1):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), torch.arange(BATCH))
        torch.autograd.backward(loss)
        optimizer.step()
    with torch.no_grad():
        scores = network.eval()(x)
    assert loss.isfinite()
    assert scores.shape == (BATCH, CLASSES)
    assert scores.isfinite().all()
    assert all(wiring.live.any() for _, wiring in network.graph.wirings())


def refusals(name: str, folder: Path) -> dict[tuple[str, str], str]:
    """What pairs of a rule and an operator that do not run on a space say."""
    said: dict[tuple[str, str], str] = {}
    space = SPACES.get(name)(smallest(name, folder))
    defaults = space.defaults(IMAGE)
    if "density" in defaults:
        defaults["density"] = 0.5
    for rule, op in PAIRS:
        try:
            spec = space.build({**defaults, "op": op, "rule": rule}, IMAGE, CLASSES)
            one_step(build_network(hurried(spec)))
        except WiringError as error:
            said[rule, op] = str(error)
    return said


def row(name: str, said: dict[tuple[str, str], str]) -> str:
    """The space's line of the table."""
    cells = []
    for rule in RULES:
        without = [op for op in RULES_WITH if (rule, op) in said]
        cells.append(f"not {', '.join(without)}" if without else "✓")
    without = [op for op in OPS if (OPS_WITH, op) in said]
    cells.append(f"all but {', '.join(without)}" if without else f"all {len(OPS)}")
    return f"| `{name}` | {' | '.join(cells)} |"


def reasons(name: str, said: dict[tuple[str, str], str]) -> list[str]:
    """What a space's refusals say, one line each."""
    return [f"- `{name}`, {rule}, {op}: {text}" for (rule, op), text in said.items()]


def table_head() -> str:
    return f"| space | {' | '.join(RULES)} | operators |\n|---|{'---|' * (len(RULES) + 1)}\n"


def page(folder: Path) -> str:
    """The whole of docs/grid.md."""
    said = {name: refusals(name, folder) for name in SPACES.names()}
    lines = [row(name, found) for name, found in said.items()]
    notes = [line for name, found in said.items() for line in reasons(name, found)]
    return HEAD + table_head() + "\n".join(lines + (["", *notes] if notes else [])) + "\n"


@pytest.fixture(scope="module")
def written() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SPACES.names())
def test_every_operator_and_rule_does_on_a_space_what_the_page_says(
    name: str, tmp_path: Path, written: str
) -> None:
    said = refusals(name, tmp_path)
    lines = written.splitlines()
    assert row(name, said) in lines
    assert [line for line in lines if line.startswith(f"- `{name}`,")] == reasons(name, said)


def test_the_page_has_a_column_for_every_rule_and_a_line_for_every_space(written: str) -> None:
    assert written.startswith(HEAD + table_head())
    spaces = [line.split("`")[1] for line in written.splitlines() if line.startswith("| `")]
    assert spaces == SPACES.names()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(Path(scratch)), encoding="utf-8")
