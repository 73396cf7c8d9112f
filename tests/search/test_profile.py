"""The table of latencies: what it predicts, how it is kept, and that the command fills it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from search import profile as held
from search.budget import apply_budget
from search.config import BudgetConfig
from search.spaces.base import SPACES
from tests.search.test_cli import Runner, wiring  # noqa: F401
from wiring.compiled.lowering import CHANNELS_LAST, PLANAR
from wiring.errors import ConfigError
from wiring.network import ImageShape, Network, build_network
from workers import latency
from workers.latency import (
    NETWORK,
    Predictor,
    Profile,
    Sample,
    Work,
    bundle_work,
    form_step,
    load_profile,
    save_profile,
)
from workers.profile import measure_profile

KINDS = ["conv", "linear", "relu", "norm", "depthwise", "join", "add", "flatten"]
FORMS = ["eager", "sparse", "conv", "conv channels_last"]


def works(count: int = 30) -> list[Work]:
    rng = np.random.default_rng(0)
    return [Work(*np.exp(rng.uniform(3, 14, 6)).tolist()) for _ in range(count)]


def samples(step: str, law: Work, call: float) -> list[Sample]:
    """Measurements that follow a law exactly: so much a unit of work, and so much a call."""
    return [
        Sample(step=step, work=work, us=call + sum(a * b for a, b in zip(law, work, strict=True)))
        for work in works()
    ]


def invented(**changes: float) -> Profile:
    """A table in which live edges take 1 ns each in the sparse form, all edges in the others."""
    found: list[Sample] = []
    for layout in (CHANNELS_LAST, PLANAR):
        for form in FORMS:
            law = Work(edges=1e-3) if form == "sparse" else Work(products=1e-3)
            for window in ((1, 1), (3, 3)):
                found += samples(form_step("dense", form, window, layout), law, 1.0)
    for kind in KINDS:
        found += samples(kind, Work(read=1e-5), 0.5)
    factor = changes.get("network", 1.0)
    found += samples(NETWORK, Work(products=factor), 0.0)
    return Profile(batch=1, threads=1, measured="2026-01-01", samples=tuple(found))


def network(density: float) -> Network:
    space, image = (
        SPACES.get("mobilenet-graph")({"size": "eighth"}),
        ImageShape(channels=1, side=32),
    )
    plain = space.build({**space.defaults(image), "rule": "random"}, image, 10)
    return build_network(apply_budget(plain, BudgetConfig(density=density))).eval()


def test_a_law_that_measurements_follow_is_found() -> None:
    law = Work(edges=2e-3, products=1e-4, weights=0.0, read=3e-3, written=0.0, after=5e-4)
    found = samples("step", law, 4.0)
    known = Predictor(invented().replace(samples=found))
    for work in (Work(1e3, 1e4, 200, 3e3, 5e3, 0), Work(5e5, 1e6, 2e4, 1e5, 1e5, 1e5)):
        expected = 4 + sum(a * b for a, b in zip(law, work, strict=True))
        assert known.us("step", work) == pytest.approx(expected, rel=0.02)


def test_between_measurements_what_the_law_leaves_is_interpolated() -> None:
    found = [
        Sample(step="step", work=w, us=(3 if w.read > 1e4 else 1) * (1 + 1e-3 * w.read))
        for w in works(200)
    ]
    known = Predictor(invented().replace(samples=found))
    errors = [abs(known.us("step", sample.work) / sample.us - 1) for sample in found]
    assert np.median(errors) < 0.2


def test_the_work_of_a_bundle_counts_live_edges_and_positions() -> None:
    work = bundle_work((2, 8, 6, 6), (4, 8, 3, 3), stride=2, padding=1, density=0.25, epilogue=True)
    assert work == Work(
        edges=0.25 * 288 * 18, products=288 * 18, weights=288, read=576, written=72, after=72
    )


def test_a_network_takes_the_sum_of_its_fastest_steps() -> None:
    known = Predictor(invented())
    sparse, dense = known.predict_ms(network(0.05)), known.predict_ms(network(1.0))
    assert 0 < sparse < dense
    doubled = Predictor(invented(network=2.0)).predict_ms(network(0.05))
    assert doubled == pytest.approx(2 * sparse, rel=0.05)


def test_a_prediction_changes_neither_the_network_nor_its_mode() -> None:
    trained = network(0.2).train()
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    Predictor(invented()).predict_ms(trained, whole=True)
    assert trained.training
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.state_dict().items())


def test_a_step_that_was_not_measured_is_named() -> None:
    model = network(0.2).spec
    adders = build_network(
        model.model_copy(update={"op": model.op.model_copy(update={"name": "adder"})})
    )
    with pytest.raises(ConfigError, match="knows no step 'adder eager 1x1 channels_last'"):
        Predictor(invented()).predict_ms(adders)


def test_a_budget_of_latency_buys_what_the_table_predicts() -> None:
    known = Predictor(invented())
    plain = network(0.5).spec
    low, high = (known.predict_ms(network(d), whole=True) for d in (0.02, 1.0))
    budget = BudgetConfig(latency_ms=(low + high) / 2)
    bought = apply_budget(plain, budget, lambda n: known.predict_ms(n, whole=True))
    assert known.predict_ms(build_network(bought)) <= budget.amount * 1.02
    assert (
        0.2
        < sum(s.budget or 0 for s in bought.topology.scopes)
        / sum(bought.topology.usable_edges(s) for s in bought.topology.scopes)
        < 1
    )


def test_the_table_measured_last_on_this_machine_is_the_one_in_force(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    older, newer = invented(), invented().replace(threads=2, measured="2026-02-01")
    save_profile(newer, path)
    save_profile(older, path)
    assert load_profile(path) == newer
    plain = json.loads(path.read_text())
    plain["machines"] = {f"another {name}": one for name, one in plain["machines"].items()}
    path.write_text(json.dumps(plain))
    with pytest.raises(ConfigError, match="no table of latencies for this machine"):
        load_profile(path)


@pytest.mark.parametrize("text", ["", "{}", '{"version": 9, "machines": {}}', "[1"])
def test_a_damaged_table_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="measure one with 'wiring profile'"):
        load_profile(path)


def test_too_short_a_time_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"0\.01 seconds are too short to measure every kind"):
        measure_profile(0.01, threads=1)


def test_the_command_measures_keeps_and_checks(
    wiring: Runner,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("workers.profile.CALL_SECONDS", 0.0)
    monkeypatch.setattr("workers.profile.FEWEST_CALLS", 2)
    monkeypatch.setattr("workers.profile.CHANNELS", (1, 32))
    monkeypatch.setattr("workers.profile.FEWEST", 1)
    monkeypatch.setattr("workers.latency.FEWEST", 1)
    end = wiring("profile", "--limit", "2s", "--threads", "1", "--json")
    assert end.code == 0, end.err
    report = json.loads(end.out)
    assert (
        report["file"] == str(tmp_path / "wiring" / "profile.json") == str(latency.profile_path())
    )
    assert report["threads"] == 1
    monkeypatch.setattr(
        held, "NETWORKS", (("mobilenet-graph", {"size": "eighth"}, (1, 16), ("dense",)),)
    )
    monkeypatch.setattr(held, "DENSITIES", (0.3,))
    end = wiring("profile", "--check", "--json")
    assert end.code == 0, end.err
    checked = json.loads(end.out)
    (row,) = checked["networks"]
    assert row["error"] == pytest.approx(row["predicted_ms"] / row["measured_ms"] - 1)
    assert checked["worst"] == checked["median"] == abs(row["error"])
