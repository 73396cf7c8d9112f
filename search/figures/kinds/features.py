"""What the last layer sees, in two dimensions and coloured by class."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from search.figures.chart import Axis, Chart, Floats, Mark, Panel, Points, Words
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.runs import Selection
from wiring.errors import StudyError
from wiring.network import Network
from workers.data import load_data
from workers.evaluate import check_fits, evaluation_batch, load_trained

IMAGES = 2000
CLASSES = 10
# Ten colours that stay apart for colour-blind readers (Petroff 2021).
TEN = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)


@KINDS.register("features")
class Features(ChartKind):
    """Features before the classifier in two dimensions, by class: PCA and LDA."""

    single = True

    def chart(self, selection: Selection) -> Chart:
        run = selection.best
        spec, network = load_trained(run.directory)
        config = spec.data
        if self.data_root is not None:
            config = config.replace(root=str(self.data_root.absolute()))
        data = load_data(config)
        check_fits(spec.model, data)
        torch.set_num_threads(spec.train.threads)
        batches = data.val_batches(evaluation_batch(spec.train))
        features, labels = [], []
        for x, y in batches:
            features.append(penultimate(network, x).double().numpy())
            labels.append(y.numpy())
            if sum(map(len, labels)) >= IMAGES:
                break
        values, classes = np.concatenate(features)[:IMAGES], np.concatenate(labels)[:IMAGES]
        if not np.isfinite(values).all():
            raise StudyError(f"run {run.name}: some features are not finite")
        shown = np.unique(classes)[:CLASSES]
        some = np.isin(classes, shown)
        values, classes = values[some], classes[some]
        names = {int(label): str(data.classes[label]) for label in shown}
        every = len(data.classes)
        count = f"{every} classes" if len(shown) == every else f"{len(shown)} of {every} classes"
        return Chart(
            f"{run.name}: features by class",
            tuple(
                _panel(title, points, classes, names)
                for title, points in projections(values, classes)
            ),
            facts=f"{run.spec.model.space} · {run.method} · {len(values):,} validation images "
            f"of {count} · {values.shape[1]} features before the classifier",
            note="PCA looks for the directions of most variance and does not know the classes. "
            "LDA looks for those that separate the classes best, so it flatters.",
            columns=2,
            size=(5.6, 4.9),
        )


@torch.no_grad()
def penultimate(network: Network, x: Tensor) -> Tensor:
    """What the classifier reads, [N, features], averaged over positions.

    The classifier is the head's linear layer or, where it has none, the bundles into the graph's
    output nodes.
    """
    network.eval()
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = inputs[0]

        return hook

    readers: dict[str, nn.Module] = {
        str(i): m for i, m in enumerate(network.head) if isinstance(m, nn.Linear)
    }
    if not readers:
        topology = network.graph.topology
        readers = {
            bundle.name: network.graph.op(bundle.name)
            for bundle in topology.bundles
            if bundle.destination == topology.output.name
        }
    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in readers.items()]
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    parts = [part.float().flatten(2).mean(2) if part.dim() > 2 else part for part in seen.values()]
    return torch.cat(parts, dim=1)


def projections(values: Floats, classes: Floats) -> list[tuple[str, Floats]]:
    """(title, points [N, 2]) by principal components, and by linear discriminants if there are
    at least three classes."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    pca = PCA(n_components=min(2, *values.shape), svd_solver="full")
    points = pca.fit_transform(values)
    if points.shape[1] < 2:
        points = np.column_stack([points, np.zeros(len(points))])
    share = pca.explained_variance_ratio_.sum()
    found = [(f"PCA: {share:.0%} of the variance", points)]
    if len(np.unique(classes)) > 2 and values.shape[1] > 1:
        lda = LinearDiscriminantAnalysis(n_components=2, solver="eigen", shrinkage="auto")
        try:
            points = lda.fit_transform(values, classes)
        except np.linalg.LinAlgError:
            # Two images a class say nothing of the shrinkage, and features of dead nodes do not
            # vary: leave out the directions without variance instead.
            lda = LinearDiscriminantAnalysis(n_components=2, solver="svd")
            points = lda.fit_transform(values, classes)
        found.append(("LDA: two discriminants", points))
    return found


def _panel(title: str, points: Floats, classes: Any, names: dict[int, str]) -> Panel:
    marks: list[Mark] = []
    words: list[Mark] = []
    for number, (label, name) in enumerate(names.items()):
        inside = points[classes == label]
        if len(inside) == 0:
            continue
        ink = TEN[number]
        marks.append(Points(inside[:, 0], inside[:, 1], ink, name, size=3.5))
        middle = np.median(inside, axis=0)
        words.append(Words(float(middle[0]), float(middle[1]), name))
    axis = "component" if title.startswith("PCA") else "discriminant"
    return Panel(title, (*marks, *words), x=Axis(f"{axis} 1"), y=Axis(f"{axis} 2"))
