"""How the wiring of one trial changed, read back from its snapshots.

Nodes of all groups are numbered through in the topology's order, and so are the usable and
unusable edges of all scopes: scope after scope, each flat as in `ScopeWiring`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from wiring.errors import StudyError
from wiring.graph.dynamic import ContinuousGraph
from wiring.graph.measure import used_nodes
from wiring.graph.topology import Topology
from wiring.network import Network, build_network
from workers.evaluate import read_trained_spec
from workers.files import read_json, read_lines

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Snapshot:
    """The live edges after an epoch: ascending ids [L], signed weights [L]; 0 is before training.

    `birth` [L] is the epoch since which each edge has lived without a break. `born` and `died`
    are the ids that began and ceased to live since the snapshot before; `died_weights` are what
    the latter had. `dead` [nodes] has no live path to an output.
    """

    epoch: int
    edges: Ints
    weights: Floats
    birth: Ints
    born: Ints
    died: Ints
    died_weights: Floats
    dead: Bools


class EdgeTable:
    """Turns edge ids into scopes, bundles and nodes."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        sizes = [group.size for group in topology.groups]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.nodes = int(starts[-1])
        self.first_node = dict(zip((g.name for g in topology.groups), starts, strict=False))
        bundles = [
            (s, topology.bundle(n)) for s, sc in enumerate(topology.scopes) for n in sc.bundles
        ]
        shapes = [topology.weight_shape(bundle) for _, bundle in bundles]
        self.bundle_names = [bundle.name for _, bundle in bundles]
        self._scope_of_bundle = np.array([scope for scope, _ in bundles])
        self._ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        self._starts = self._ends - [int(np.prod(shape)) for shape in shapes]
        self._windows = np.array([shape[2] * shape[3] for shape in shapes])
        self._columns = np.array([shape[1] for shape in shapes])
        self._first_row = np.array([self.first_node[b.destination] for _, b in bundles])
        self._sources = [
            np.concatenate(
                [self.first_node[n] + np.arange(topology.group(n).size) for n in b.sources]
            )
            for _, b in bundles
        ]
        self._source_start = np.concatenate([[0], np.cumsum(self._columns)])
        self._source_nodes = np.concatenate(self._sources)
        firsts = [self.bundle_names.index(scope.bundles[0]) for scope in topology.scopes]
        self.first_edge = self._starts[firsts]

    def bundles(self, edges: Ints) -> Ints:
        """Position in `bundle_names` of each edge."""
        return np.searchsorted(self._ends, edges, side="right").astype(np.int64)

    def scopes(self, edges: Ints) -> Ints:
        """Position in the topology's scopes of each edge."""
        return self._scope_of_bundle[self.bundles(edges)].astype(np.int64)

    def ends(self, edges: Ints) -> tuple[Ints, Ints]:
        """(sources, destinations) of edges as node numbers."""
        bundle = self.bundles(edges)
        pair = (edges - self._starts[bundle]) // self._windows[bundle]
        row, column = np.divmod(pair, self._columns[bundle])
        sources = self._source_nodes[self._source_start[bundle] + column]
        return sources, self._first_row[bundle] + row

    def skips(self) -> tuple[Ints, Ints]:
        """(sources, destinations) of all fixed identities."""
        sources: list[int] = []
        destinations: list[int] = []
        for skip in self.topology.skips:
            size = self.topology.group(skip.destination).size
            sources += [int(self.first_node[skip.source]) + n for n in skip.reads(size)]
            destinations += range(
                int(self.first_node[skip.destination]),
                int(self.first_node[skip.destination]) + size,
            )
        return np.array(sources, np.int64), np.array(destinations, np.int64)


class History:
    """A trial's specification, the snapshots of its wiring, and its metrics by epoch. Where a
    node rule has removed nodes, its wirings since then, in the smaller network.

    Raises StudyError where the trial has no snapshot or a damaged one, ConfigError for a spec
    that is none.
    """

    def __init__(self, directory: Path) -> None:
        self.spec = read_trained_spec(directory)
        self.topology = self.spec.model.topology
        self.table = EdgeTable(self.topology)
        self.network: Network = build_network(self.spec.model, seed=self.spec.seed)
        self.rows: dict[int, dict[str, Any]] = {
            int(row["epoch"]): row for row in read_lines(directory / "metrics.jsonl")
        }
        result = directory / "result.json"
        self.result = read_json(result) if result.exists() else None
        self.snapshots = self._read(directory / "wirings")

    @property
    def best(self) -> Snapshot:
        """The wiring of the best epoch; the last one of a trial that did not finish."""
        wanted = self.result["best_epoch"] if self.result else -1
        return next((s for s in self.snapshots if s.epoch == wanted), self.snapshots[-1])

    def strongest(self, snapshot: Snapshot, total: int) -> Ints:
        """Positions in `snapshot.edges` of at most `total` live edges, ascending.

        Each scope gives its strongest, and all of them where it has fewer than its fair share.
        """
        scopes = self.table.scopes(snapshot.edges)
        members = [np.flatnonzero(scopes == scope) for scope in np.unique(scopes)]
        chosen: list[Ints] = []
        for done, inside in enumerate(sorted(members, key=len)):
            share = (total - sum(map(len, chosen))) // (len(members) - done)
            chosen.append(inside[strongest(snapshot.weights[inside], share)])
        return np.sort(np.concatenate(chosen))

    def show(self, snapshot: Snapshot) -> None:
        """Give the network the live edges of a snapshot, and their weights (0 elsewhere); to a
        solver the number of evaluations that it took then."""
        for number, (_, wiring) in enumerate(self.network.graph.wirings()):
            first, size = self.table.first_edge[number], wiring.live.numel()
            begin, end = np.searchsorted(snapshot.edges, [first, first + size])
            flat = torch.from_numpy(snapshot.edges[begin:end] - first)
            wiring.live.zero_()
            wiring.live[flat] = True
            values = torch.zeros(size)
            values[flat] = torch.from_numpy(snapshot.weights[begin:end])
            for name, part in wiring.split(values).items():
                op = self.network.graph.op(name)
                if not op.tied:
                    op.weight.data = part.clone()
        graph, row = self.network.graph, self.rows.get(snapshot.epoch, {})
        if isinstance(graph, ContinuousGraph):
            graph.counts[0] = int(row.get("val_nfe", 0))

    def _read(self, directory: Path) -> list[Snapshot]:
        paths = sorted(directory.glob("epoch-*.safetensors"))
        if not paths:
            raise StudyError(f"{directory} holds no snapshot of a wiring")
        snapshots: list[Snapshot] = []
        for path in paths:
            number = re.fullmatch(r"epoch-(\d+)", path.stem)
            if number:
                before = snapshots[-1] if snapshots else None
                snapshots.append(self._snapshot(path, int(number[1]), before))
        return snapshots

    def _snapshot(self, path: Path, epoch: int, before: Snapshot | None) -> Snapshot:
        try:
            tensors = load_file(path)
            parts = [
                (tensors[f"{scope.name}.edges"] + first, tensors[f"{scope.name}.weights"])
                for scope, first in zip(self.topology.scopes, self.table.first_edge, strict=True)
            ]
        except Exception as error:  # safetensors raises its own, untyped errors
            raise StudyError(f"{path} cannot be read: {error}") from None
        edges = np.concatenate([part for part, _ in parts]).astype(np.int64)
        weights = np.concatenate([part for _, part in parts]).astype(np.float32)
        birth = np.full(edges.shape, epoch, np.int64)
        born = died = np.zeros(0, np.int64)
        died_weights = np.zeros(0, np.float32)
        if before is not None:
            place = np.minimum(np.searchsorted(before.edges, edges), len(before.edges) - 1)
            old = before.edges[place] == edges
            birth[old] = before.birth[place[old]]
            born = edges[~old]
            gone = ~np.isin(before.edges, edges, assume_unique=True)
            died, died_weights = before.edges[gone], before.weights[gone]
        snapshot = Snapshot(
            epoch, edges, weights, birth, born, died, died_weights, np.zeros(0, np.bool_)
        )
        self.show(snapshot)
        used = used_nodes(self.network.graph)
        dead = ~torch.cat([used[group.name] for group in self.topology.groups]).numpy()
        return Snapshot(epoch, edges, weights, birth, born, died, died_weights, dead)


def strongest(weights: Floats, count: int) -> Ints:
    """Positions of the `count` largest magnitudes, largest first; ties go to the lower one."""
    return np.argsort(-np.abs(weights), kind="stable")[:count]
