"""What the first layer looks for: its filters as images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from search.figures.chart import Axis, Chart, Floats, Heat, Panel, Picture
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.runs import Selection
from wiring.errors import StudyError
from wiring.network import Network
from workers.evaluate import load_trained

SHOWN = 64
GAP = 1


@KINDS.register("filters")
class Filters(ChartKind):
    """The filters of the first layer as images."""

    single = True

    def chart(self, selection: Selection) -> Chart:
        run = selection.best
        _, network = load_trained(run.directory)
        layers = first_filters(network)
        if not layers:
            raise StudyError(
                f"run {run.name}: its first layer has filters of one pixel; "
                "there is nothing to see in them"
            )
        return Chart(
            f"{run.name}: filters of the first layer",
            tuple(_panel(name, weight) for name, weight in layers),
            facts=f"{run.spec.model.space} · {run.method}",
            note="Grey levels and colours are those of each filter's own range; "
            "white inside a filter: dead edges."
            if layers[0][1].shape[1] == 3
            else "Blue: positive, red: negative, white: zero; grey: dead edges, and the gaps.",
            columns=2,
            size=(5.6, 5.4),
        )


@torch.no_grad()
def first_filters(network: Network) -> list[tuple[str, Tensor]]:
    """(name, weight [filters, channels, kh, kw]) of what reads the image; dead edges are NaN.

    The first convolution of the stem or, where the image's channels are nodes, the bundles that
    read them. Without those whose filters are single pixels.
    """
    for position, module in enumerate(network.stem):
        if isinstance(module, nn.Conv2d):
            return [(f"stem.{position}", module.weight)] if module.weight.shape[-1] > 1 else []
    graph, found = network.graph, []
    live = graph.live()
    for bundle in graph.topology.bundles:
        if graph.topology.input.name in bundle.sources and math.prod(bundle.kernel) > 1:
            weight = graph.op(bundle.name).weight
            found.append((bundle.name, weight.masked_fill(~live[bundle.name], math.nan)))
    return found


def _panel(name: str, weight: Tensor) -> Panel:
    count, channels, *_ = weight.shape
    values = weight.detach().double().cpu().numpy()
    shown = min(SHOWN, count if channels in (1, 3) else count * channels)
    if channels == 3:
        tiles = _colours(values[:shown])
        mark: Heat | Picture = Picture(mosaic(tiles, 1.0))
    else:
        tiles = values.reshape(count * channels, *values.shape[2:])[:shown, :, :, None]
        top = float(np.nanmax(np.abs(tiles))) or 1.0
        mark = Heat(mosaic(tiles, math.nan)[:, :, 0], -top, top, unit="weight", diverging=True)
    of = count if channels == 3 else count * channels
    text = f"{of} filters" if shown == of else f"the first {shown} of {of} filters"
    kernel = f"{weight.shape[2]}×{weight.shape[3]}"
    return Panel(f"{name}: {text}, {kernel}", (mark,), x=Axis(ticks=()), y=Axis(ticks=()))


def _colours(values: Floats) -> Floats:
    """Filters [n, 3, kh, kw] as pixels [n, kh, kw, 3], each over its own range."""
    low = np.nanmin(values, axis=(1, 2, 3), keepdims=True)
    high = np.nanmax(values, axis=(1, 2, 3), keepdims=True)
    scaled = np.nan_to_num((values - low) / np.maximum(high - low, 1e-12), nan=1.0)
    pixels: Floats = scaled.transpose(0, 2, 3, 1)
    return pixels


def mosaic(tiles: Floats, between: float) -> Floats:
    """Tiles [n, h, w, c] side by side in a square-like grid, `between` in the gaps."""
    count, high, wide, channels = tiles.shape
    across = math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    image = np.full(
        (down * (high + GAP) - GAP, across * (wide + GAP) - GAP, channels), between, np.float64
    )
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        top, left = row * (high + GAP), column * (wide + GAP)
        image[top : top + high, left : left + wide] = tile
    return image
