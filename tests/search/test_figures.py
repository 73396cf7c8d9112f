"""Pictures and tables of a trial and of a study, against the snapshots they are made of."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.figures import page, write_artifacts, write_pareto
from search.figures.history import EdgeTable, History
from search.figures.layout import place
from search.figures.pareto import spans_a_decade
from tests.search.fake_study import FakeStudy, topology
from wiring.errors import StudyError
from wiring.graph.convert import from_graphml, from_node_link
from wiring.graph.costs import total_cost
from wiring.graph.measure import dead_nodes, live_edges
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology

EPOCHS = 4
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    """Two ended trials with artifacts, the second stopped early."""
    fake = FakeStudy(tmp_path_factory.mktemp("runs"))
    for number, state in enumerate(("finished", "stopped")):
        trial = fake.ask(number)
        for epoch in range(1, EPOCHS + 1):
            fake.epoch(trial, epoch)
        fake.end(trial, state)
        write_artifacts(fake.trial(trial))
    return fake


def embedded(trial: Path) -> dict[str, Any]:
    """The data inside wiring.html."""
    text = (trial / "artifacts" / "wiring.html").read_text()
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match
    data: dict[str, Any] = json.loads(match[1])
    return data


def unpack(text: str, kind: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), kind)


def test_a_finished_trial_has_every_artifact(study: FakeStudy) -> None:
    artifacts = study.trial("0000") / "artifacts"
    names = {path.name for path in artifacts.iterdir()}
    assert names == {"graph.json", "graph.graphml", "costs.csv", "wiring.png", "wiring.html"}
    assert (artifacts / "wiring.png").read_bytes().startswith(PNG)


def test_a_stopped_trial_shows_its_last_epoch(study: FakeStudy) -> None:
    assert History(study.trial("0001")).best.epoch == EPOCHS


@pytest.mark.parametrize("name", ["graph.json", "graph.graphml"])
def test_the_graph_files_hold_the_live_edges_with_their_weights(
    study: FakeStudy, name: str
) -> None:
    network = study.networks["0000"]
    read = from_node_link if name.endswith("json") else from_graphml
    graph = read((study.trial("0000") / "artifacts" / name).read_text())
    assert graph.number_of_edges() == live_edges(network.graph)
    live = network.graph.live()["to-first"]
    weight = network.graph.op("to-first").weight.detach()
    for destination, source in live[:, :, 0, 0].nonzero().tolist():
        edge = graph.edges[f"input:{source}", f"first:{destination}"]
        assert edge["weight"] == pytest.approx(float(weight[destination, source]))


def test_the_cost_table_sums_to_the_cost_of_the_network(study: FakeStudy) -> None:
    with (study.trial("0000") / "artifacts" / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = total_cost(study.networks["0000"]).to_dict()
    assert rows[-1]["name"] == "total"
    for key, value in wanted.items():
        assert float(rows[-1][key]) == pytest.approx(value)
        assert sum(float(row[key]) for row in rows[:-1]) == pytest.approx(value)


def test_the_page_is_whole_in_itself(study: FakeStudy) -> None:
    text = (study.trial("0000") / "artifacts" / "wiring.html").read_text()
    assert "{{" not in text
    assert not re.search(r"https?://|src=|href=|@import|url\(|localStorage|fetch\(", text)


def test_the_page_counts_born_and_died_edges_of_every_epoch(study: FakeStudy) -> None:
    data = embedded(study.trial("0000"))
    history = History(study.trial("0000"))
    assert [epoch["epoch"] for epoch in data["epochs"]] == list(range(EPOCHS + 1))
    before: set[int] = set()
    for epoch, snapshot in zip(data["epochs"], history.snapshots, strict=True):
        now = set(snapshot.edges.tolist())
        live, born, died = (sum(counts) for counts in epoch["counts"])
        assert live == len(now)
        if epoch["epoch"] > 0:
            assert (born, died) == (len(now - before), len(before - now))
            assert born > 0
        before = now


def test_weights_on_the_page_are_those_of_the_snapshot(study: FakeStudy) -> None:
    data = embedded(study.trial("0000"))
    snapshot = History(study.trial("0000")).snapshots[-1]
    epoch = data["epochs"][-1]
    weights = unpack(epoch["weight"], "<i2") * epoch["scale"]
    np.testing.assert_allclose(weights, snapshot.weights, atol=epoch["scale"])


def test_ages_count_epochs_without_a_break(study: FakeStudy) -> None:
    snapshots = History(study.trial("0000")).snapshots
    sets = [set(snapshot.edges.tolist()) for snapshot in snapshots]
    last = snapshots[-1]
    for edge, birth in zip(last.edges.tolist(), last.birth.tolist(), strict=True):
        assert all(edge in now for now in sets[birth:])
        assert birth == 0 or edge not in sets[birth - 1]


def test_dead_nodes_are_those_that_the_library_counts(study: FakeStudy) -> None:
    last = History(study.trial("0000")).snapshots[-1]
    assert int(last.dead.sum()) == dead_nodes(study.networks["0000"].graph)


def test_a_page_of_a_large_graph_shows_the_strongest_and_says_so(
    study: FakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "SHOWN_EDGES", 40)
    monkeypatch.setattr(page, "SHOWN_NEW", 5)
    history = History(study.trial("0000"))
    layout = place(history.topology, history.table, history.best.edges)
    data = page.page_data(history, layout, "name")
    for epoch, snapshot in zip(data["epochs"], history.snapshots, strict=True):
        shown = len(unpack(epoch["live"], "<u4"))
        assert 30 <= shown <= 40 < sum(epoch["counts"][0]) == len(snapshot.edges)
        assert len(unpack(epoch["weight"], "<i2")) == len(unpack(epoch["birth"], "<u2")) == shown


def test_strongest_edges_are_shared_out_fairly_among_scopes(study: FakeStudy) -> None:
    history = History(study.trial("0000"))
    snapshot = history.best
    chosen = history.strongest(snapshot, 50)
    scopes = history.table.scopes(snapshot.edges[chosen])
    assert np.bincount(scopes).tolist() == [25, 25]
    inside = history.table.scopes(snapshot.edges) == 1
    kept = np.abs(snapshot.weights[chosen][scopes == 1])
    assert kept.min() >= np.sort(np.abs(snapshot.weights[inside]))[-25]


def test_edge_ids_lead_to_the_nodes_that_the_masks_name() -> None:
    kernel = Topology(
        groups=tuple(NodeGroup(name=n, size=s) for n, s in (("a", 2), ("b", 3), ("c", 2))),
        bundles=(
            Bundle(name="ab", sources=("a",), destination="b", kernel=(3, 3), padding=1),
            Bundle(name="abc", sources=("b", "a"), destination="c"),
        ),
        scopes=(Scope(name="s", bundles=("ab",)), Scope(name="t", bundles=("abc",))),
    )
    for shape in (kernel, topology()):
        table = EdgeTable(shape)
        seen = 0
        for scope in shape.scopes:
            for name in scope.bundles:
                bundle = shape.bundle(name)
                nodes = [
                    int(table.first_node[group]) + index
                    for group in bundle.sources
                    for index in range(shape.group(group).size)
                ]
                mask = torch.ones(shape.weight_shape(bundle), dtype=torch.bool)
                rows, columns = mask.nonzero()[:, :2].T.tolist()
                sources, destinations = table.ends(seen + np.arange(mask.numel()))
                assert sources.tolist() == [nodes[column] for column in columns]
                first = int(table.first_node[bundle.destination])
                assert destinations.tolist() == [first + row for row in rows]
                seen += mask.numel()


def test_no_two_nodes_of_a_layout_stand_on_one_another() -> None:
    shape = topology(width=40)
    table = EdgeTable(shape)
    layout = place(shape, table, np.arange(0, 5000, 7))
    points = set(zip(layout.x.round(6).tolist(), layout.y.round(6).tolist(), strict=True))
    assert len(points) == table.nodes
    assert layout.y.min() == 0
    ends = [end for span in layout.spans for end in span]
    assert ends == sorted(ends)


def test_a_trial_without_snapshots_is_refused(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    trial = fake.trial(fake.ask(0))
    (trial / "wirings" / "epoch-0000.safetensors").unlink()
    with pytest.raises(StudyError, match="no snapshot"):
        write_artifacts(trial)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    trial = fake.trial(fake.ask(0))
    (trial / "wirings" / "epoch-0000.safetensors").write_bytes(b"torn")
    with pytest.raises(StudyError, match=r"epoch-0000\.safetensors cannot be read"):
        write_artifacts(trial)


def test_names_in_a_page_cannot_end_its_data(study: FakeStudy, tmp_path: Path) -> None:
    history = History(study.trial("0000"))
    layout = place(history.topology, history.table, history.best.edges)
    trial = tmp_path / "</script><script>alert(1)" / "trials" / "0000"
    text = page.page(history, layout, trial)
    assert "<script>alert" not in text


def test_the_front_of_a_study_is_drawn_and_listed(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path, trials=4)
    for number, (width, state) in enumerate(
        [(8, "finished"), (4, "finished"), (8, "finished"), (8, "stopped")]
    ):
        trial = fake.ask(number, width=width)
        fake.epoch(trial, 1)
        fake.end(trial, state)
    write_pareto(fake.directory)
    assert (fake.directory / "pareto.png").read_bytes().startswith(PNG)
    with (fake.directory / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    # 0002 is as large as 0000 and less accurate; 0001 is smaller; 0003 never finished.
    assert [row["run"] for row in rows] == ["fake/0000", "fake/0001"]
    assert "fake/0001 | dense | dnw" in (fake.directory / "front.md").read_text()
    html = (fake.directory / "pareto.html").read_text()
    assert "fake\\u002f0002" in html or "fake/0002" in html
    assert not re.search(r"<script[^>]+src=", html)


def test_a_study_without_finished_trials_has_an_empty_front(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    fake.ask(0)
    write_pareto(fake.directory)
    assert (fake.directory / "front.csv").read_text().count("\n") == 1
    assert (fake.directory / "pareto.png").exists()


def test_an_axis_is_logarithmic_only_where_its_costs_span_a_decade() -> None:
    assert spans_a_decade([1.0, 11.0])
    assert not any(spans_a_decade(costs) for costs in ([], [5.0], [1.87, 1.96], [0.0, 90.0]))
