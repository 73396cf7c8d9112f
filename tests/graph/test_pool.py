"""Entries of a pool that take budget and never act: training, resuming, compacting, exporting."""

from __future__ import annotations

from pathlib import Path

import torch
from rule_cases import STEPS, Training, graph
from rule_cases import topology as pair
from small_networks import images, mixed_topology, spec, trained

from wiring.compact import compact
from wiring.export import export, load_exported
from wiring.graph.topology import Topology


def wasteful(topology: Topology, unusable: int) -> Topology:
    """The topology with so many unusable entries in its first scope."""
    first, *others = topology.scopes
    return topology.replace(scopes=[first.replace(unusable=unusable), *others])


def test_unusable_entries_take_the_budget_that_their_weights_win() -> None:
    module = graph("dnw", shape=wasteful(pair(), 40))
    wiring = module.scope("all")
    assert wiring.unusable is not None
    scores = module.edges(wiring).scores()[wiring.allowed]
    weakest = torch.cat([scores, wiring.unusable.abs()]).topk(wiring.rule.budget).values.min()
    assert int(wiring.live.sum()) == int((scores >= weakest).sum())
    assert 0 < int(wiring.live.sum()) < wiring.rule.budget


def test_unusable_entries_decay_and_learn_nothing() -> None:
    module = graph("dnw", shape=wasteful(pair(), 40))
    unusable = module.scope("all").unusable
    assert unusable is not None
    before = unusable.detach().clone()
    training = Training(module)
    for group in training.optimizer.param_groups:
        group["momentum"] = 0.0
    training.run(1)
    torch.testing.assert_close(unusable.detach(), before * (1 - 0.3 * 1e-3))


def test_a_resumed_training_with_unusable_entries_is_the_uninterrupted_one() -> None:
    shape = wasteful(pair(), 40)
    whole = Training(graph("dnw", shape=shape))
    whole.run(STEPS // 2)
    saved = whole.state()
    expected = whole.run(STEPS // 2)
    resumed = Training(graph("dnw", shape=shape, seed=4))
    resumed.load(saved)
    found = resumed.run(STEPS // 2)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    last, again = whole.module.scope("all").unusable, resumed.module.scope("all").unusable
    assert last is not None
    assert again is not None
    assert torch.equal(last, again)


def test_compaction_and_export_leave_unusable_entries_out(tmp_path: Path) -> None:
    network = trained(spec(wasteful(mixed_topology(), 60)))
    assert int(network.graph.scope("early").live.sum()) < 12
    small = compact(network)
    assert small.graph.scope("early").unusable is None
    torch.testing.assert_close(small(images()), network(images()), rtol=1e-4, atol=1e-5)
    export(network, tmp_path / "net.safetensors")
    again = load_exported(tmp_path / "net.safetensors")
    torch.testing.assert_close(again(images()), network(images()), rtol=1e-4, atol=1e-5)
