"""What is on disk is what the cost says, and nothing else can be read back as a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from small_networks import PAIRS, images, mixed_topology, pair_name, spec, trained

from wiring.compact import compact
from wiring.config import Component
from wiring.errors import CheckpointError
from wiring.export import (
    digest_of,
    export,
    load_exported,
    pack_live,
    read_file,
    stored_tensors,
    unpack_live,
)
from wiring.graph import Scope
from wiring.graph.costs import index_bits, total_cost
from wiring.graph.rules import EDGE_RULES
from wiring.graph.scope import ScopeWiring
from wiring.network import StemSpec


def payload(path: Path) -> tuple[int, int]:
    """(tensors, bytes of all of them) by the file's own header."""
    data = path.read_bytes()
    header_size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_size])
    return len(header) - ("__metadata__" in header), len(data) - 8 - header_size


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
@pytest.mark.parametrize("kind", ["conv", "tiny"])
def test_a_network_comes_back_the_same_for_every_operator_and_rule(
    tmp_path: Path, op: Component, rule: str, kind: str
) -> None:
    stem = StemSpec.model_validate({"kind": kind})
    network = trained(spec(mixed_topology(), op, rule, stem=stem))
    export(network, tmp_path / "net.safetensors")
    again = load_exported(tmp_path / "net.safetensors")
    assert not again.training
    torch.testing.assert_close(again(images()), network(images()), rtol=1e-4, atol=1e-5)
    assert again.spec == compact(network).spec
    for name, live in compact(network).graph.live().items():
        assert torch.equal(live, again.graph.live()[name])


@pytest.mark.parametrize(("op", "rule"), PAIRS, ids=pair_name)
@pytest.mark.parametrize("budgets", [(12, 14, 6), (80, 200, 20)])
def test_the_payload_has_the_bits_of_the_cost(
    tmp_path: Path, op: Component, rule: str, budgets: tuple[int, int, int]
) -> None:
    network = trained(spec(mixed_topology(budgets=budgets), op, rule))
    export(network, tmp_path / "net.safetensors")
    tensors, size = payload(tmp_path / "net.safetensors")
    cost = total_cost(compact(network))
    bits = cost.weight_bits + cost.index_bits
    assert bits <= 8 * size < bits + 8 * tensors
    assert size == sum(t.nbytes for t in stored_tensors(compact(network)).values())


def test_an_export_of_a_loaded_network_is_the_same_network(tmp_path: Path) -> None:
    network = trained(spec(mixed_topology()))
    export(network, tmp_path / "one.safetensors")
    export(load_exported(tmp_path / "one.safetensors"), tmp_path / "two.safetensors")
    first, second = (load_exported(tmp_path / f"{n}.safetensors") for n in ("one", "two"))
    assert first.spec == second.spec
    torch.testing.assert_close(first(images()), second(images()))


@given(st.integers(2, 300), st.data())
@settings(max_examples=40, deadline=None)
def test_live_edges_survive_packing_in_exactly_their_index_bits(
    usable: int, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.integers(0, usable - 1), min_size=1, max_size=usable))
    gaps = data.draw(st.integers(0, 20))
    topology = mixed_topology(inputs=usable + gaps)
    first = topology.bundles[0].replace(edges=[(0, i) for i in range(usable)])
    scope = Scope(name="s", bundles=("in-a",), budget=len(chosen))
    rule = EDGE_RULES.get("random")(len(chosen))
    others = [bundle.to_dict() for bundle in topology.bundles[1:]]
    rest = Scope(name="rest", bundles=tuple(b.name for b in topology.bundles[1:]))
    changed = topology.replace(
        bundles=[first.to_dict(), *others], scopes=[scope.to_dict(), rest.to_dict()]
    )
    wiring = ScopeWiring(changed, scope, rule)
    wiring.live[list(chosen)] = True
    packed = pack_live(wiring)
    bits = index_bits(len(chosen), usable)
    assert (0 if packed is None else packed.numel()) == (bits + 7) // 8
    assert torch.equal(unpack_live(wiring, packed), wiring.live)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    export(trained(spec(mixed_topology())), path)
    return path


def rewrite(path: Path, **changes: str) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata: dict[str, str] = file.metadata()
    save_file(tensors, path, {**metadata, **changes})


def test_a_flipped_bit_is_found(exported: Path) -> None:
    data = bytearray(exported.read_bytes())
    data[-3] ^= 16
    exported.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: is damaged: its tensors do not"):
        load_exported(exported)


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_truncated_file_is_refused(exported: Path, kept: int) -> None:
    exported.write_bytes(exported.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"net\.safetensors: is damaged"):
        load_exported(exported)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "other"}, "is no exported network"),
        ({"version": "99"}, "is of format version 99, this is version 1"),
        ({"spec": "{"}, "holds no valid network"),
        ({"spec": "{}"}, "holds no valid network: key '.*' is missing"),
    ],
)
def test_a_header_of_something_else_is_refused(
    exported: Path, changes: dict[str, str], sentence: str
) -> None:
    rewrite(exported, **changes)
    with pytest.raises(CheckpointError, match=rf"net\.safetensors: {sentence}"):
        load_exported(exported)


def test_a_spec_that_its_tensors_do_not_fit_is_refused(exported: Path) -> None:
    with safe_open(exported, framework="pt") as file:
        model: dict[str, Any] = json.loads(file.metadata()["spec"])
    model["topology"]["scopes"][0]["budget"] -= 1
    rewrite(exported, spec=json.dumps(model))
    with pytest.raises(CheckpointError, match=r"net\.safetensors: does not fit its own network"):
        load_exported(exported)


def test_a_stream_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    export(trained(spec(mixed_topology(), Component(name="vq"))), path)
    tensors, metadata = read_file(path)
    codes = next(name for name in tensors if name.endswith(".codes"))
    tensors[codes] = tensors[codes][:1].clone()
    save_file(tensors, path, {**metadata, "digest": digest_of(tensors)})
    with pytest.raises(CheckpointError, match=r"net\.safetensors: does not fit its own network"):
        load_exported(path)


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=f"{path}: "):
            load_exported(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exported.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"net\.safetensors: cannot be written: No space"):
        export(trained(spec(mixed_topology())), exported)
    assert exported.read_bytes() == before
    assert list(exported.parent.iterdir()) == [exported]
