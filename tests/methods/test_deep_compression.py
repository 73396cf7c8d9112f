"""Deep Compression's file: positions and codes in one stream, and the paper's ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from method_cases import Shape, images, make, masks
from small_networks import images as pictures
from small_networks import mixed_topology, spec, trained
from torch import Tensor

from wiring.compact import compact
from wiring.config import Component
from wiring.errors import CheckpointError
from wiring.export import export, load_exported, stored_tensors
from wiring.graph.costs import cost_table, total_cost
from wiring.graph.edges import EDGE_OPS
from wiring.methods.deep_compression import DeepCompression
from wiring.network import Network

SHAPE = Shape("layer", sources=12, destinations=10, kernel=(3, 3), padding=1, density=0.1)
# The LeNet-5 of Caffe, pruned as in the paper's table 3: weights, share that lives, bits.
LENET = {
    "conv1": ((20, 1, 5, 5), 0.66, 8),
    "conv2": ((50, 20, 5, 5), 0.12, 8),
    "fc1": ((500, 800, 1, 1), 0.08, 5),
    "fc2": ((10, 500, 1, 1), 0.19, 5),
}


def compressed(shape: Shape = SHAPE, **options: Any) -> DeepCompression:
    op = make("deep-compression", shape, stage=1, **options).float()
    assert isinstance(op, DeepCompression)
    return op


@pytest.mark.parametrize(
    ("density", "options"),
    [
        (0.1, {}),
        (0.02, {"gap_bits": 2, "bits": 3}),
        (0.6, {"centroids": 10}),
        (1.0, {"gap_bits": 1}),
        (0.002, {"gap_bits": 4}),
    ],
)
def test_a_stream_holds_edges_and_weights_bit_for_bit(
    density: float, options: dict[str, int]
) -> None:
    shape = Shape("layer", sources=12, destinations=10, kernel=(3, 3), density=density)
    live = masks(shape)[0]
    op = compressed(shape, **options)
    stored = op.pack(live)
    assert set(stored) == {"stream", "centroids"}
    assert 0 <= 8 * sum(t.nbytes for t in stored.values()) - op.cost(live, 1).weight_bits < 8
    again = make("deep-compression", shape, **options).float()
    found = again.unpack_live(stored)
    assert found is not None
    assert torch.equal(found, live)
    again.unpack(stored, live)
    assert again.stage == 1
    assert torch.equal(again.weight, torch.where(live, op.weight, 0.0))
    again.verify(live)


def test_gaps_that_are_too_long_take_fillers_of_weight_zero() -> None:
    live = torch.zeros(SHAPE.destinations, SHAPE.sources, 3, 3, dtype=torch.bool)
    live.view(-1)[torch.tensor([0, 3, 40, 41, 1000])] = True
    op = make("deep-compression", SHAPE, gap_bits=5, bits=2)
    assert isinstance(op, DeepCompression)
    op.enter(1, live)
    gaps, codes = op._entries(live)
    # 37 = 32 + 5, and 959 = 29·32 + 31.
    assert gaps.tolist() == [0, 2, 31, 4, 0, *[31] * 29, 30]
    assert (codes == 4).nonzero()[0].tolist() == [2, *range(5, 34)]


def test_layers_have_the_papers_number_of_centroids() -> None:
    assert compressed().count == 256
    assert compressed(Shape("full", sources=40)).count == 32
    assert compressed(bits=3).count == 8


def ratios() -> tuple[float, float, float]:
    """How many times smaller LeNet-5 is: pruned; with codes and gaps of fixed width; as stored."""
    generator = torch.Generator().manual_seed(0)
    whole = pruned = fixed = stored = 0
    for shape, share, bits in LENET.values():
        weight = torch.randn(shape, generator=generator)
        edges = int(share * weight.numel())
        live = torch.zeros(weight.numel(), dtype=torch.bool)
        live[weight.abs().flatten().topk(edges).indices] = True
        op = EDGE_OPS.get("deep-compression")(
            shape[1], shape[0], kernel=(shape[2], shape[3]), options={"bits": bits, "gap_bits": 5}
        )
        assert isinstance(op, DeepCompression)
        op.approximate(weight)
        op.enter(1, live.view(shape))
        whole, pruned = whole + 32 * weight.numel(), pruned + 32 * edges
        fixed += op.fixed_bits(live.view(shape))
        stored += 8 * sum(tensor.nbytes for tensor in op.pack(live.view(shape)).values())
    return whole / pruned, whole / fixed, whole / stored


def test_lenet_is_as_much_smaller_as_in_the_paper() -> None:
    pruned, fixed, stored = ratios()
    assert pruned == pytest.approx(12, abs=0.5)
    assert fixed == pytest.approx(33, abs=1)  # here 33.1
    assert stored == pytest.approx(39, abs=1)  # here 39.1


@pytest.mark.parametrize("kept", [0, 3, 6, 20, 60])
def test_a_stream_that_is_cut_off_is_refused(kept: int) -> None:
    live = masks(SHAPE)[0]
    op = compressed()
    stored = op.pack(live)
    stored["stream"] = stored["stream"][:kept]
    with pytest.raises(ValueError, match="ends"):
        op.unpack_live(stored)


def test_streams_of_other_layers_are_refused() -> None:
    live = masks(SHAPE)[0]
    op = compressed()
    stored = op.pack(live)
    small = Shape("small", sources=2, destinations=2)
    with pytest.raises(ValueError, match=r"for 4 edges"):
        make("deep-compression", small, bits=8).unpack_live(stored)
    few = Shape("few", sources=12, destinations=9, kernel=(3, 3))
    with pytest.raises(ValueError, match="leads beyond the 972 edges"):
        make("deep-compression", few).unpack_live(stored)
    with pytest.raises(ValueError, match="others than those of the stream"):
        op.unpack(stored, ~live)


def network(budgets: tuple[int, int, int] = (60, 120, 20), mixed: bool = False) -> Network:
    """After training to the last stage; with `mixed`, the first scope holds a dense bundle too."""
    topology = mixed_topology(budgets=budgets)
    if mixed:
        first = topology.bundles[0].replace(op={"name": "dense"})
        topology = topology.replace(bundles=[b.to_dict() for b in (first, *topology.bundles[1:])])
    return trained(spec(topology, Component(name="deep-compression", bits=3)))


def check_file(model: Network, path: Path) -> dict[str, Tensor]:
    """Export, load, compare; returns what was stored."""
    less = compact(model)
    export(model, path)
    again = load_exported(path)
    for name, live in less.graph.live().items():
        assert torch.equal(again.graph.live()[name], live)
    torch.testing.assert_close(again(pictures()), less(pictures()), rtol=1e-4, atol=1e-5)
    stored, cost = stored_tensors(less), total_cost(less)
    spare = 8 * sum(t.nbytes for t in stored.values()) - cost.weight_bits - cost.index_bits
    assert 0 <= spare < 8 * len(stored)
    assert total_cost(model) == cost
    return stored


def test_positions_are_stored_once(tmp_path: Path) -> None:
    stored = check_file(network(), tmp_path / "net.safetensors")
    assert not [name for name in stored if name.startswith("live.")]
    rows = {row.name: row.cost.index_bits for row in cost_table(network())}
    assert [rows[f"{scope}.index"] for scope in ("early", "kernels", "late")] == [0, 0, 0]


def test_a_scope_tells_the_edges_of_the_other_operators_only(tmp_path: Path) -> None:
    model = network(mixed=True)
    stored = check_file(model, tmp_path / "net.safetensors")
    live = compact(model).graph.live()["in-a"]
    assert stored["live.early"].numel() == -(-live.numel() // 8)


@pytest.mark.parametrize("dead", ["in-a", "ina-b"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_a_bundle_without_edges_says_so_by_storing_nothing(
    dead: str, mixed: bool, stage: int, tmp_path: Path
) -> None:
    model = network(mixed=mixed)
    for op in model.graph.staged:
        op.stage = stage
    wiring = model.graph.scope("early")
    wiring.split(wiring.live)[dead].zero_()
    check_file(model, tmp_path / "net.safetensors")


def test_before_the_codebook_a_scope_tells_where_edges_live(tmp_path: Path) -> None:
    model = network()
    for op in model.graph.staged:
        op.stage = 0
    stored = check_file(model, tmp_path / "net.safetensors")
    assert {"live.early", "live.kernels", "live.late"} <= set(stored)


def test_a_file_whose_stream_does_not_fit_its_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    pack = DeepCompression.pack_codebook

    def shifted(op: DeepCompression, live: Tensor) -> dict[str, Tensor]:
        return pack(op, live | ~live)

    monkeypatch.setattr(DeepCompression, "pack_codebook", shifted)
    export(model, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its own network"):
        load_exported(tmp_path / "net.safetensors")


def test_the_function_is_that_of_the_shared_weights() -> None:
    live, learn = masks(SHAPE)
    op = compressed()
    x = images(SHAPE).float()
    expected = torch.nn.functional.conv2d(x, op.centroids[op.codes.long()] * live, padding=1)
    torch.testing.assert_close(op(x, live, learn), expected)
