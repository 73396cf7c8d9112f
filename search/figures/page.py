"""`wiring.html`: one file with everything in it, for a frame that may load nothing else.

Numbers travel as base64 of little-endian arrays. Where a network has more live edges than a
browser draws well, every epoch shows the strongest of each scope and some of those that are new;
the page says so, and its counters always count all of them.
"""

from __future__ import annotations

import base64
import html
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search.figures.history import History, Ints, Snapshot, strongest
from search.figures.layout import LOOP_GROWTH, LOOP_LIFT, LOOP_REACH, Layout

SHOWN_EDGES = 6000
SHOWN_NEW = 500
SHOWN_DIED = 500
SHOWN_SKIPS = 3000
MAX_INT16 = 32767
ROW_KEYS = ("val_accuracy", "train_accuracy", "val_loss", "train_loss")


def page(history: History, layout: Layout, trial_dir: Path) -> str:
    """The whole HTML document."""
    name = f"{trial_dir.parent.parent.name}/{trial_dir.name}"
    data = json.dumps(page_data(history, layout, name), separators=(",", ":"))
    template = resources.files("search.figures").joinpath("wiring_template.html").read_text()
    # "</script>" inside a name would end the data early.
    data = data.replace("<", "\\u003c")
    return template.replace("{{title}}", html.escape(f"wiring of {name}")).replace("{{data}}", data)


def page_data(history: History, layout: Layout, name: str) -> dict[str, Any]:
    """What the page's script reads; names are explained there."""
    table, model = history.table, history.spec.model
    views = [_choose(history, snapshot) for snapshot in history.snapshots]
    union = np.unique(np.concatenate([part for view in views for part in view]))
    sources, destinations = table.ends(union)
    skips = table.skips()
    return {
        "name": name,
        "facts": {
            "space": model.space,
            "operator": model.op.name,
            "rule": model.rule.name,
            "seed": history.spec.seed,
        },
        "best": history.result["best_epoch"] if history.result else None,
        "test": history.result["test_accuracy"] if history.result else None,
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "stage": group.stage,
                "labels": group.labels,
                "span": span,
            }
            for group, span in zip(history.topology.groups, layout.spans, strict=True)
        ],
        "scopes": [
            {"name": scope.name, "usable": history.topology.usable_edges(scope)}
            for scope in history.topology.scopes
        ],
        "layout": {
            "width": layout.width,
            "height": layout.height,
            "loop": [LOOP_REACH, LOOP_LIFT, LOOP_GROWTH],
            "x": pack(layout.x, "<f4"),
            "y": pack(layout.y, "<f4"),
        },
        "skips": [pack(part[:SHOWN_SKIPS], "<u4") for part in skips],
        "edges": {
            "source": pack(sources, "<u4"),
            "destination": pack(destinations, "<u4"),
            "scope": pack(table.scopes(union), "<u2"),
        },
        "epochs": [
            _epoch(history, snapshot, view, union)
            for snapshot, view in zip(history.snapshots, views, strict=True)
        ],
    }


def pack(array: npt.NDArray[Any], kind: str) -> str:
    """Base64 of an array as little-endian numbers of that kind."""
    return base64.b64encode(np.ascontiguousarray(array.astype(kind)).tobytes()).decode()


def _choose(history: History, snapshot: Snapshot) -> tuple[Ints, Ints]:
    """Ids of the live and of the removed edges that the page draws at this epoch, ascending."""
    edges = snapshot.edges
    if len(edges) > SHOWN_EDGES:
        new = np.flatnonzero(np.isin(edges, snapshot.born, assume_unique=True))
        new = new[strongest(snapshot.weights[new], SHOWN_NEW)]
        old = history.strongest(snapshot, SHOWN_EDGES - len(new))
        edges = edges[np.union1d(old, new)]
    died = snapshot.died[strongest(snapshot.died_weights, SHOWN_DIED)]
    return edges, np.sort(died)


def _epoch(
    history: History, snapshot: Snapshot, view: tuple[Ints, Ints], union: Ints
) -> dict[str, Any]:
    table, (live, died) = history.table, view
    at = np.searchsorted(snapshot.edges, live)
    died_weights = snapshot.died_weights[np.searchsorted(snapshot.died, died)]
    weights = snapshot.weights[at]
    largest = max(
        [float(np.abs(part).max()) for part in (weights, died_weights) if len(part)] or [1.0]
    )
    scale = largest / MAX_INT16 or 1.0
    sources, destinations = table.ends(snapshot.edges)
    scopes = len(history.topology.scopes)
    counts = [
        np.bincount(table.scopes(part), minlength=scopes).tolist()
        for part in (snapshot.edges, snapshot.born, snapshot.died)
    ]
    row = history.rows.get(snapshot.epoch, {})
    return {
        "epoch": snapshot.epoch,
        "scale": scale,
        "live": pack(np.searchsorted(union, live), "<u4"),
        "weight": pack(np.round(weights / scale), "<i2"),
        "birth": pack(snapshot.birth[at], "<u2"),
        "died": pack(np.searchsorted(union, died), "<u4"),
        "diedWeight": pack(np.round(died_weights / scale), "<i2"),
        "counts": counts,
        "in": pack(_degrees(destinations, table.nodes), "<u2"),
        "out": pack(_degrees(sources, table.nodes), "<u2"),
        "dead": pack(np.packbits(snapshot.dead, bitorder="little"), "u1"),
        "deadNodes": int(snapshot.dead.sum()),
        "metrics": {key: row.get(key) for key in ROW_KEYS},
    }


def _degrees(ends: Ints, nodes: int) -> Ints:
    return np.minimum(np.bincount(ends, minlength=nodes), np.iinfo(np.uint16).max).astype(np.int64)
