"""A compiled network is the evaluated one, faster; what was measured may vanish at any time."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import (
    OPS,
    PAIRS,
    images,
    mixed_topology,
    op_name,
    pair_name,
    spec,
    trained,
)
from torch import Tensor

import wiring
from wiring.compact import compact
from wiring.compiled import CompiledNetwork, load, tuning
from wiring.compiled.tuning import Memory, cache_path, machine
from wiring.config import Component
from wiring.cost import Cost
from wiring.errors import CheckpointError, ConfigError, WiringError
from wiring.export import export, load_exported
from wiring.graph import Bundle, NodeGroup, Scope, Skip, Topology
from wiring.graph.costs import total_cost
from wiring.graph.edges import EDGE_OPS, EdgeOp, Epilogue, Kernel, mask_weight
from wiring.network import HeadSpec, Network, StemSpec


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test begins with nothing measured; what is fastest is no test's concern."""
    monkeypatch.setattr(tuning, "SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wiring" / "kernels.json"


def check(network: Network, compiled: CompiledNetwork, x: Tensor) -> None:
    """The same scores: to the bit where every operator takes signs, else within rounding."""
    with torch.no_grad():
        expected, found = network(x), compiled(x)
    ops = [network.graph.op(bundle.name) for bundle in network.spec.topology.bundles]
    if all(op.sensitive and not op.needs_norm for op in ops):
        assert torch.equal(found, expected)
    elif all(op.sensitive for op in ops):
        # The mean over pixels behind the last norm rounds otherwise in another memory format.
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    else:
        atol = 1e-5 * max(1.0, float(expected.abs().max()))
        if not any(op.sensitive for op in ops):
            # An instance norm of nearly equal values blows every rounding up, PyTorch's own too.
            with torch.no_grad():
                exact = deepcopy(network).double()(x.double())
            atol += 2 * float((expected - exact).abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
@pytest.mark.parametrize("kind", ["conv", "tiny"])
def test_it_returns_what_evaluation_returns_for_every_operator_and_rule(
    op: Component, rule: str, kind: str
) -> None:
    stem = StemSpec.model_validate({"kind": kind})
    network = trained(spec(mixed_topology(), op, rule, stem=stem))
    compiled = wiring.compile(network, batch=6, cache=False)
    check(network, compiled, images())
    check(network, compiled, images(1, seed=8))


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_every_form_that_an_operator_offers_can_be_pinned_and_returns_the_same(
    op: Component,
) -> None:
    network = trained(spec(mixed_topology(budgets=(60, 120, 20)), op))
    measured = wiring.compile(network, batch=6, cache=False).choices()
    forms = {choice.bundle: list(choice.us) for choice in measured}
    assert all("eager" in offered for offered in forms.values())
    for turn in range(max(map(len, forms.values()))):
        kernels = {name: offered[turn % len(offered)] for name, offered in forms.items()}
        compiled = wiring.compile(network, batch=6, cache=False, kernels=kernels)
        assert {choice.bundle: choice.kernel for choice in compiled.choices()} == kernels
        check(network, compiled, images())


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Groups in a row, each fed by some earlier ones through one or two bundles, and skips."""
    count = draw(st.integers(2, 4))
    sizes = [draw(st.sampled_from([1, 3, 5, 8])) for _ in range(count)]
    steps = st.sampled_from(
        [(), ("norm",), ("act",), ("norm", "act"), ("act", "norm"), ("norm", "act", "depthwise")]
    )
    norm = st.sampled_from(["batch", "batch", "instance"])
    groups = [
        NodeGroup(name=f"g{i}", size=size, steps=draw(steps), norm=draw(norm))
        for i, size in enumerate(sizes)
    ]
    bundles, skips = [], []
    for i in range(1, count):
        earlier = [group.name for group in groups[:i]]
        chosen = st.lists(st.sampled_from(earlier), min_size=1, max_size=2, unique=True)
        for number in range(draw(st.integers(1, 2))):
            kernel = draw(st.sampled_from([1, 3]))
            bundles.append(
                Bundle(
                    name=f"b{i}-{number}",
                    sources=tuple(draw(chosen)),
                    destination=f"g{i}",
                    kernel=(kernel, kernel),
                    padding=kernel // 2,
                )
            )
        for j in range(i):
            if sizes[j] >= sizes[i] and draw(st.booleans()):
                start = draw(st.integers(0, sizes[j] - sizes[i]))
                skips.append(Skip(source=f"g{j}", destination=f"g{i}", start=start))
    plain = Topology(
        groups=tuple(groups),
        bundles=tuple(bundles),
        scopes=tuple(Scope(name=b.name, bundles=(b.name,)) for b in bundles),
        skips=tuple(skips),
    )
    scopes = tuple(
        scope.replace(budget=draw(st.integers(1, plain.usable_edges(scope))))
        for scope in plain.scopes
    )
    return plain.replace(scopes=[scope.to_dict() for scope in scopes])


@given(topologies(), st.sampled_from(PAIRS), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_topology_is_compiled_to_the_same_function(
    topology: Topology, pair: tuple[Component, str], mixed: bool
) -> None:
    op, rule = pair
    if mixed:  # one bundle in floating point, before, between or behind the others
        first, *others = (bundle.to_dict() for bundle in topology.bundles)
        topology = topology.replace(bundles=[{**first, "op": {"name": "dense"}}, *others])
    network = trained(spec(topology, op, rule, head=HeadSpec(kind="linear")), steps=2)
    compiled = wiring.compile(network, batch=2, cache=False)
    check(network, compiled, images(2))


def test_a_network_of_signs_gives_the_same_bits_whatever_the_batch() -> None:
    network = trained(spec(mixed_topology(budgets=(80, 200, 20)), "xnor"))
    compiled = wiring.compile(network, cache=False)
    assert {choice.kernel for choice in compiled.choices()} <= {"packed", "packed words"}
    for count in (1, 3, 16):
        check(network, compiled, images(count, seed=count))


def test_what_leads_up_to_a_sign_keeps_its_order_of_operations() -> None:
    topology = mixed_topology(inputs=40, budgets=(300, 120, 20))
    changed = [bundle.to_dict() for bundle in topology.bundles]
    changed[0]["op"] = {"name": "dense"}
    network = trained(spec(topology.replace(bundles=changed), "xnor"))
    compiled = wiring.compile(network, batch=6, cache=False)
    assert torch.equal(compiled(images()), network(images()).detach())


def test_batch_norm_goes_into_the_convolution_before_it_where_no_sign_is_ahead() -> None:
    network = trained(spec(mixed_topology(), "dense", "complete"))
    assert wiring.compile(network, cache=False).steps().count("norm") == 1  # behind a ReLU, alone
    network = trained(spec(mixed_topology(), "xnor", "complete"))
    kernels = {"in-a": "packed words", "ina-b": "packed words", "c-out": "packed words"}
    compiled = wiring.compile(network, cache=False, kernels=kernels)
    assert "norm" not in compiled.steps()
    assert compiled.steps().count("pack") == 3


def tensors(root: object) -> Iterator[Tensor]:
    """Every tensor that an object keeps alive, through partials, closures and attributes."""
    seen: set[int] = set()
    queue = [root]
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type) or type(item).__name__ == "module":
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        queue += [
            part for part in gc.get_referents(item) if part is not getattr(item, "__globals__", 0)
        ]


def test_the_weights_of_binary_layers_take_one_bit_each() -> None:
    topology = Topology(
        groups=(
            NodeGroup(name="in", size=128, steps=("norm", "act")),
            NodeGroup(name="out", size=128, steps=("norm", "act")),
        ),
        bundles=(Bundle(name="b", sources=("in",), destination="out", kernel=(3, 3), padding=1),),
        scopes=(Scope(name="all", bundles=("b",)),),
    )
    network = trained(spec(topology, "xnor", "complete"), steps=1)
    edges = network.graph.op("b").weight.numel()
    compiled = wiring.compile(network, cache=False, kernels={"b": "packed words"})
    assert compiled.choices()[0].live_edges == edges
    kept = sum(tensor.nbytes for tensor in tensors(compiled._program))
    floats = sum(t.numel() for t in tensors(compiled._program) if t.is_floating_point())
    scales_norms_stem_head = 128 + 4 * 128 + 3 * 128 * 9 + 129 * 3 + 2 * 128
    assert floats <= scales_norms_stem_head
    assert kept <= edges / 8 + 4 * scales_norms_stem_head + 1024


def content(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a safetensors file."""
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:size]), data[size:]


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_a_saved_network_is_as_large_as_its_cost_and_comes_back_compiled(
    tmp_path: Path, op: Component
) -> None:
    network = trained(spec(mixed_topology(budgets=(80, 200, 20)), op))
    compiled = wiring.compile(network, cache=False)
    path = tmp_path / "compiled.safetensors"
    compiled.save(path)
    export(network, tmp_path / "exported.safetensors")
    header, payload = content(path)
    assert (header, payload) == content(tmp_path / "exported.safetensors")
    cost = total_cost(compact(network))
    bits = cost.weight_bits + cost.index_bits
    assert bits <= 8 * len(payload) < bits + 8 * (len(header) - 1)
    check(load_exported(path), load(path, batch=6), images())


def test_what_cannot_be_written_or_read_is_one_sentence(tmp_path: Path) -> None:
    compiled = wiring.compile(trained(spec(mixed_topology())), cache=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="net: cannot be written"):
        compiled.save(tmp_path / "file" / "net")
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        load(tmp_path / "nothing.safetensors")


def test_a_form_is_measured_once_and_then_remembered(cache: Path) -> None:
    network = trained(spec(mixed_topology()))
    first = wiring.compile(network)
    assert not any(choice.remembered for choice in first.choices())
    assert cache == cache_path()
    assert list(json.loads(cache.read_text())["machines"]) == [machine()]
    again = wiring.compile(network)
    assert all(choice.remembered for choice in again.choices())
    assert [c.kernel for c in again.choices()] == [c.kernel for c in first.choices()]
    other = wiring.compile(network, batch=2)
    assert not any(choice.remembered for choice in other.choices())


def test_another_machine_or_number_of_threads_measures_for_itself(cache: Path) -> None:
    network = trained(spec(mixed_topology()))
    wiring.compile(network, threads=1)
    compiled = wiring.compile(network, threads=2)
    assert not any(choice.remembered for choice in compiled.choices())
    assert len(json.loads(cache.read_text())["machines"]) == 2
    assert torch.get_num_threads() == 1


DAMAGED = [
    b"",
    b"{",
    b"[1]",
    b'{"version": 99, "machines": {}}',
    b'{"version": 1, "machines": {"m": {"k": {"eager": "fast"}}}}',
    b'{"version": 1, "machines": {"m": [1]}}',
    b"\xff\xfe",
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_cache_is_ignored_with_a_warning_and_replaced(
    cache: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    network = trained(spec(mixed_topology()))
    with caplog.at_level(logging.WARNING):
        check(network, wiring.compile(network), images())
    assert "kernels.json: is not a file of version 1" in caplog.text
    assert all(choice.remembered for choice in wiring.compile(network).choices())


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file where the directory should be")
    network = trained(spec(mixed_topology()))
    with caplog.at_level(logging.WARNING):
        check(network, wiring.compile(network), images())
    assert "cannot be written" in caplog.text


def test_processes_that_measure_at_once_keep_what_the_other_found(cache: Path) -> None:
    one, two = Memory(cache), Memory(cache)
    one.put("a", {"eager": 1.0})
    two.put("b", {"eager": 2.0})
    one.save()
    two.save()
    both = Memory(cache)
    assert both.get("a", {"eager": 0}) == {"eager": 1.0}
    assert both.get("b", {"eager": 0}) == {"eager": 2.0}
    assert both.get("a", {"eager": 0, "new form": 0}) is None


def test_the_network_its_input_and_the_random_state_are_left_alone() -> None:
    network = trained(spec(mixed_topology())).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    generator, x = torch.random.get_rng_state(), images()
    compiled = wiring.compile(network, cache=False)
    compiled(x)
    assert network.training
    assert torch.equal(x, images())
    assert torch.equal(generator, torch.random.get_rng_state())
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("op", OPS, ids=op_name)
def test_threads_may_call_at_once_with_images_of_different_sizes(op: Component) -> None:
    network = trained(spec(mixed_topology(budgets=(60, 120, 20)), op))
    compiled = wiring.compile(network, cache=False)
    inputs = [images(n, seed=n)[..., : 12 - n % 3] for n in range(1, 7)] * 4
    expected = [compiled(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(compiled, inputs), expected, strict=True):
            assert torch.equal(found, wanted)


def test_any_memory_format_of_images_gives_the_same() -> None:
    network = trained(spec(mixed_topology()))
    compiled = wiring.compile(network, cache=False)
    x = images()
    wide = torch.zeros(6, 3, 12, 24)
    wide[..., ::2] = x
    for other in (x.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
        assert torch.equal(compiled(other), compiled(x))
    assert compiled(images(0)).shape == (0, 3)


def test_misuse_is_one_sentence() -> None:
    network = trained(spec(mixed_topology()))
    compiled = wiring.compile(network, cache=False)
    for wrong, sentence in (
        (images()[0], r"takes float32 \[N, 3, H, W\], got float32 \[3, 12, 12\]"),
        (images(channels=2), r"got float32 \[6, 2, 12, 12\]"),
        (images().double(), "got float64"),
        (images().to("meta"), "runs on the CPU, got images on meta"),
    ):
        with pytest.raises(WiringError, match=sentence):
            compiled(wrong)
    with pytest.raises(WiringError, match="are float32 on the CPU, got one of float64 on cpu"):
        wiring.compile(trained(spec(mixed_topology())).double(), cache=False)
    with pytest.raises(ConfigError, match="there is no bundle 'no-such'"):
        wiring.compile(network, cache=False, kernels={"no-such": "conv"})
    with pytest.raises(ConfigError, match="'in-a' has no kernel 'gpu' here; it has eager"):
        wiring.compile(network, cache=False, kernels={"in-a": "gpu"})
    with pytest.raises(ConfigError, match="batch must be at least 1, got 0"):
        wiring.compile(network, cache=False, batch=0)
    with pytest.raises(ConfigError, match="threads must be at least 1, got 0"):
        wiring.compile(network, cache=False, threads=0)


class Plugin(EdgeOp):
    """A linear operator of another distribution, with a form of its own."""

    wrong: float = 0.0

    def forward(self, x: Tensor, live: Tensor, learn: Tensor) -> Tensor:
        weight = mask_weight(self.weight, live, learn)
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)

    def candidates(self, live: Tensor, epilogue: Epilogue) -> dict[str, Kernel]:
        weight = (self.weight * live).detach() * (1 + self.wrong)
        stride, padding = self.stride, self.padding
        run = epilogue.after(lambda x: F.conv2d(x, weight, stride=stride, padding=padding))
        return {"mine": run}

    def cost(self, live: Tensor, positions: int) -> Cost:
        return Cost()


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> type[Plugin]:
    monkeypatch.setitem(EDGE_OPS._classes, "mine", Plugin)
    return Plugin


def test_an_operator_from_elsewhere_brings_its_own_forms(plugin: type[Plugin]) -> None:
    network = trained(spec(mixed_topology(), "mine"))
    compiled = wiring.compile(network, batch=6, cache=False, kernels={"in-a": "mine"})
    assert set(compiled.choices()[1].us) == {"eager", "mine"}
    check(network, compiled, images())


def test_a_form_that_computes_something_else_is_refused_by_name(
    plugin: type[Plugin], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "wrong", 0.01)
    network = trained(spec(mixed_topology(), "mine"))
    sentence = "kernel 'mine' of operator 'mine' does not compute what the operator does in bundle"
    with pytest.raises(WiringError, match=sentence):
        wiring.compile(network, batch=6, cache=False)
