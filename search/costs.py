"""What a run or a model costs, layer by layer: the report behind `wiring cost`."""

from __future__ import annotations

import csv
import difflib
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from search.study import find_trial
from wiring.errors import CheckpointError, StudyError, UnknownNameError, WiringError
from wiring.export import load_exported, read_file
from wiring.graph.costs import CostRow, cost_table
from wiring.models.compiled import CompiledModel
from wiring.models.compiled import compile as compile_model
from wiring.models.cost import model_cost
from wiring.models.files import FORMAT as CONVERTED
from wiring.models.inputs import check_runs
from wiring.models.layers import wired_layers
from wiring.network import ModelSpec, Network, build_network
from workers.costs import TOTAL, compare, dense_equivalent, operations, table
from workers.evaluate import load_trained
from workers.layer_times import bundle_times, module_times

# What a model was before: a trial's spec, or the plain model that was converted.
Before = ModelSpec | nn.Module | None
ATTENTION = (".projections", ".scores", ".softmax")  # rows of one module


def open_model(name: str, runs: Path, weights: Path | None = None) -> tuple[nn.Module, Before]:
    """A network, and what it was before, as far as that is known.

    The network is a trial's (before: what the trial began with), that of an exported, compiled or
    converted file (before: torchvision's model that was converted), one of torchvision's, or what
    FILE.py:FUNCTION makes. The last two take `weights`, a state dict or a converted file of theirs.
    Raises UnknownNameError for anything else, CheckpointError or StudyError for a run or a file
    that cannot be read.
    """
    from search.models import open_plain

    if weights is not None:
        converted = read_file(weights)[1].get("format") == CONVERTED
        model = open_plain(name, weights=weights)[0]
        return model, open_plain(name)[0] if converted else None
    try:
        directory = find_trial(name, runs)
    except StudyError as missing:
        no_run = missing
    else:
        spec, network = load_trained(directory)
        return network.eval(), spec.model
    if Path(name).is_file():
        return _open_file(Path(name))
    if ".py:" in name:
        return open_plain(name)[0], None
    if "/" in name or Path(name).suffix:
        raise CheckpointError(f"{no_run}; nor is there such a file")
    plain = torchvision_model(name)
    if plain is not None:
        return plain, None
    raise unknown_model(name, "no run, no file and no model of torchvision's")


def _open_file(path: Path) -> tuple[nn.Module, Before]:
    """An exported network, or a converted model whose file says what it was made of."""
    from search.models import open_plain

    if read_file(path)[1].get("format") != CONVERTED:
        return load_exported(path), None
    model, source = open_plain(str(path))
    return model, torchvision_model(source)


def torchvision_model(name: str) -> nn.Module | None:
    """A model of torchvision's without trained weights, None where there is no such name."""
    import torchvision

    if name not in torchvision.models.list_models():
        return None
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = torchvision.models.get_model(name)
    return model.eval()


def unknown_model(name: str, what: str) -> UnknownNameError:
    """That a name is `what` it is not, with models of torchvision's that it may mean."""
    import torchvision

    near = difflib.get_close_matches(name, torchvision.models.list_models(), n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return UnknownNameError(f"'{name}' is {what}{hint}")


def image_shape(text: str) -> tuple[int, ...]:
    """(3, 224, 224) of "3x224x224". Raises WiringError."""
    parts = text.lower().replace("×", "x").split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise WiringError(f"--input is like 3x224x224, got '{text}'")
    return tuple(int(part) for part in parts)


def report(
    model: nn.Module, shape: tuple[int, ...], *, before: Before = None, measured: bool = False
) -> dict[str, Any]:
    """Everything that `wiring cost` shows, as plain data.

    `layers` are the lines of `workers.costs.table`, the total last; `notes` what they leave out.
    Where there is something before, `compared` holds it against the model: the dense network in a
    `Network`'s place (that of `before` where nodes have been removed since), whose `input` is its
    own, or the plain model that was converted. Where `measured`, that has times too, and models
    with nothing before have `times`: each layer's share of the operations and of the time.
    """
    if isinstance(model, Network):
        spec = before if isinstance(before, ModelSpec) else model.spec
        return _network_report(model, spec, measured=measured)
    example = torch.zeros(1, *shape)
    check_runs(model, example)
    rows = _quiet_cost(model, example)
    found: dict[str, Any] = {
        "input": list(shape),
        "layers": table(rows),
        "notes": [f"{row.name}: {row.note}" for row in rows if row.note],
    }
    if isinstance(before, nn.Module):
        found["compared"] = _converted(before, model, rows, example, measured=measured)
    elif measured:
        found["times"] = _shares(rows, module_times(model, example, _modules(rows)))
    return found


def _quiet_cost(model: nn.Module, example: Tensor) -> list[CostRow]:
    """The rows of a model; what is not known stands in their notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return model_cost(model, example)


def _network_report(network: Network, spec: ModelSpec, *, measured: bool) -> dict[str, Any]:
    dense, places = dense_equivalent(spec)
    before = cost_table(build_network(dense), whole=True)
    after = cost_table(network)
    times = bundle_times(dense, network) if measured else None
    image = network.spec.image
    return {
        "input": [image.channels, image.side, image.side],
        "layers": table(after),
        "notes": [],
        "compared": [one.to_dict() for one in compare(before, after, places, times)],
    }


def _converted(
    plain: nn.Module, model: nn.Module, after: list[CostRow], example: Tensor, *, measured: bool
) -> list[dict[str, Any]]:
    """A plain model against what it was converted to, timed in its compiled form. A wired layer
    has several rows, and takes the place of one layer."""
    before, layers = _quiet_cost(plain, example), set(wired_layers(model))
    owners = {row.name: _owner(row.name, layers) for row in after}
    places = {name: owner for name, owner in owners.items() if owner is not None}
    times = None
    if measured:
        images = torch.randn(example.shape)
        compiled = compile_model(model, example=images)
        fast = compiled.model if isinstance(compiled, CompiledModel) else model
        timed = {name for name in _modules(after) if owners.get(name) is None} | layers
        times = (
            module_times(plain, images, _modules(before)),
            module_times(fast, images, timed),
        )
    return [one.to_dict() for one in compare(before, after, places, times)]


def _owner(row: str, layers: set[str]) -> str | None:
    """The wired layer that a row is of."""
    parts = row.split(".")
    names = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((name for name in names if name in layers), None)


def _modules(rows: Sequence[CostRow]) -> set[str]:
    return {_module(row) for row in rows if row.kind not in ("function", "unknown", "index")}


def _module(row: CostRow) -> str:
    """The module that a row is of."""
    return next((row.name.removesuffix(s) for s in ATTENTION if row.name.endswith(s)), row.name)


def _shares(rows: Sequence[CostRow], us: dict[str, float]) -> list[dict[str, Any]]:
    """Each measured module's operations and time, and its share of both over all of them.

    `slower`: its share of the time is larger than that of the operations.
    """
    work: dict[str, int] = {}
    for row in rows:
        if _module(row) in us:
            work[_module(row)] = work.get(_module(row), 0) + operations(row.cost)
    sums = sum(work.values()), sum(us[name] for name in work)
    lines = []
    for name, done in work.items():
        shares = done / max(1, sums[0]), us[name] / sums[1]
        lines.append(
            {
                "layer": name,
                "operations": done,
                "us": us[name],
                "operations_share": shares[0],
                "time_share": shares[1],
                "slower": shares[1] > shares[0],
            }
        )
    # The whole model's own time: layers overlap in nothing, but functions between them count.
    whole = {"layer": TOTAL, "operations": sums[0], "us": us[TOTAL]}
    return [*lines, {**whole, "operations_share": 1.0, "time_share": 1.0, "slower": False}]


def as_csv(found: dict[str, Any]) -> str:
    """The lines of a report, one table: with what they were before, and times, where there are."""
    lines = found.get("compared") or found["layers"]
    if "times" in found:
        measured = {line["layer"]: line["us"] for line in found["times"]}
        lines = [{**line, "us": measured.get(line["layer"])} for line in lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(found: dict[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(found)
