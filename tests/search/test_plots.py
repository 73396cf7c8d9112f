"""Every kind of figure: the numbers that are drawn, the files, and what is refused."""

from __future__ import annotations

import itertools
import json
import math
import re
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.figures import interactive, paint
from search.figures.chart import Axis, Bars, Chart, Heat, Line, Panel, Points
from search.figures.kinds.base import KINDS, ChartKind
from search.figures.kinds.features import penultimate, projections
from search.figures.kinds.filters import first_filters, mosaic
from search.figures.kinds.heatmap import Part
from search.figures.kinds.weights import gaussian, laplace
from search.figures.logged import OF_STUDY, OF_TRIAL, write_study_figures, write_trial_figures
from search.figures.runs import Selection, mean_and_spread, select
from search.records import StudyRecords
from tests.search.fake_study import FakeStudy
from wiring.errors import ConfigError, StudyError, UnknownNameError
from wiring.graph.telemetry import jaccard
from wiring.graph.topology import Bundle, NodeGroup, Scope, Topology
from workers.evaluate import load_trained
from workers.files import append_line, write_json, write_tensors

EPOCHS = 3
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    """Two finished trials of DNW, a stopped one of the random rule, and one that only began."""
    fake = FakeStudy(tmp_path_factory.mktemp("runs"), trials=4)
    for number, state in enumerate(("finished", "finished", "stopped")):
        trial = fake.ask(number)
        spec = json.loads((fake.trial(trial) / "spec.json").read_text())
        spec["data"] |= {"side": 8, "limit": 400}
        spec["model"]["rule"]["name"] = "random" if number == 2 else "dnw"
        write_json(fake.trial(trial) / "spec.json", spec)
        for epoch in range(1, EPOCHS + 1 - (number == 2)):
            fake.epoch(trial, epoch)
        fake.end(trial, state)
    fake.ask(3)
    return fake


@pytest.fixture(scope="module")
def everything(study: FakeStudy) -> Selection:
    return select(["fake"], study.directory.parent)


def chart(kind: str, selection: Selection) -> Chart:
    figure = KINDS.get(kind)()
    assert isinstance(figure, ChartKind)
    return figure.chart(selection)


def lines(panel: Panel, *, faint: bool = False) -> dict[str, Line]:
    """The curves of a panel by label (thin ones by the run that they are of)."""
    return {
        (line.hover if faint else line.label or ""): line
        for line in panel.kind(Line)
        if line.faint == faint
    }


@pytest.mark.parametrize("kind", KINDS.names())
@pytest.mark.parametrize("form", ["png", "svg", "html"])
def test_every_kind_comes_in_every_format(everything: Selection, kind: str, form: Any) -> None:
    data = KINDS.get(kind)().render(everything, form)
    if form == "png":
        assert data.startswith(PNG)
    elif form == "svg":
        assert xml.etree.ElementTree.fromstring(data).tag.endswith("svg")
    else:
        page = data.decode()
        assert "<html" in page
        assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in ("front", "filters")])
def test_a_kind_takes_a_trial_that_has_not_finished_or_says_what_it_lacks(
    study: FakeStudy, kind: str
) -> None:
    stopped = select([str(study.trial("0002"))], study.directory.parent)
    if kind == "features":
        with pytest.raises(Exception, match=r"weights\.safetensors"):
            KINDS.get(kind)().render(stopped, "png")
    else:
        assert KINDS.get(kind)().render(stopped, "png").startswith(PNG)


def test_curves_show_the_mean_of_each_method_with_its_spread(everything: Selection) -> None:
    panel = chart("curves", everything).panels[0]
    curves = lines(panel)
    assert list(curves) == ["dense · dnw (2 trials, 2 seeds)", "dense · random"]
    values = [[row["val_accuracy"] for row in run.rows] for run in everything.runs[:2]]
    mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1)
    drawn = curves["dense · dnw (2 trials, 2 seeds)"]
    np.testing.assert_allclose(drawn.y, mean)
    assert drawn.band is not None
    np.testing.assert_allclose(drawn.band, (mean - spread, mean + spread))
    assert set(lines(panel, faint=True)) == {"fake/0000", "fake/0001"}
    assert curves["dense · random"].x.tolist() == [1, 2]


def test_painted_and_interactive_curves_are_those_of_the_chart(everything: Selection) -> None:
    drawn = chart("curves", everything)
    wanted = [line.y.tolist() for line in drawn.panels[0].kind(Line)]
    axes = paint.figure(drawn).axes[0]
    assert [list(line.get_ydata()) for line in axes.lines] == wanted
    traces = [
        trace.y.tolist()
        for trace in interactive.figure(drawn).data
        if trace.xaxis == "x" and trace.fill is None
    ]
    assert traces == wanted


def test_a_mean_is_over_those_that_have_a_number_there() -> None:
    columns = [
        (np.array([1.0, 2.0, 3.0]), np.array([0.1, math.nan, 0.5])),
        (np.array([1.0, 2.0]), np.array([0.3, 0.4])),
        (np.array([4.0]), np.array([math.nan])),
    ]
    epochs, mean, spread = mean_and_spread(columns)
    assert epochs.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(mean, [0.2, 0.4, 0.5, math.nan])
    np.testing.assert_allclose(spread, [math.sqrt(0.02), 0, 0, 0], atol=1e-12)


def test_a_metric_that_is_not_a_number_leaves_a_gap(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    trial = fake.ask(0)
    for epoch in (1, 2):
        fake.epoch(trial, epoch)
    path = fake.trial(trial) / "metrics.jsonl"
    path.write_text(re.sub(r'"val_loss": [\d.e-]+', '"val_loss": NaN', path.read_text(), count=1))
    selection = select(["fake"], tmp_path)
    (line,) = chart("curves", selection).panels[2].kind(Line)
    assert np.isnan(line.y).tolist() == [True, False]
    assert KINDS.get("curves")().render(selection, "png").startswith(PNG)


def test_the_beginning_of_a_phase_is_marked(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    trial = fake.ask(0)
    row = fake.epoch(trial, 1)
    append_line(fake.trial(trial) / "metrics.jsonl", {**row, "epoch": 2, "phase": "prune"})
    (border,) = chart("curves", select(["fake"], tmp_path)).panels[0].marks[1:]
    assert (border.x, border.text) == (1.5, "prune")


def test_swaps_show_the_rates_ages_and_dead_nodes_of_the_rows(everything: Selection) -> None:
    panels = chart("swaps", everything).panels
    for panel, key in zip(panels, ("swap_rate", "mean_age", "dead_nodes"), strict=False):
        line = lines(panel)["dense · random"]
        assert line.y.tolist() == [row[key] for row in everything.runs[2].rows]


def test_overlaps_are_those_of_the_snapshots(everything: Selection) -> None:
    first, second, third = everything.runs[:3]
    _, _, _, start, seeds, rules = chart("swaps", everything).panels
    both = [line for line in seeds.kind(Line) if line.dash == "solid"]
    assert len(both) == 1
    found = [jaccard(first.masks(e), second.masks(e)) for e in range(EPOCHS + 1)]
    np.testing.assert_allclose(both[0].y, found)
    between = lines(rules)["dense · dnw ∩ random (2 pairs)"]
    found = [
        np.mean([jaccard(run.masks(e), third.masks(e)) for run in (first, second)])
        for e in range(EPOCHS)
    ]
    np.testing.assert_allclose(between.y, found)
    assert all(line.y[0] == 1 for line in start.kind(Line) if line.dash == "solid")
    expected = lines(rules)["expected of random wirings"]
    assert 0 < expected.y[0] < 0.5


def test_trials_that_choose_from_other_edges_are_not_compared(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    for number, width in enumerate((8, 4)):
        trial = fake.ask(number, width=width)
        fake.epoch(trial, 1)
        fake.end(trial)
    panels = chart("swaps", select(["fake"], tmp_path)).panels
    assert "choose from the same edges" in panels[4].instead
    assert panels[4].marks == ()


def test_a_heat_map_has_a_cell_for_every_pair_of_nodes(everything: Selection) -> None:
    run = everything.best
    live = load_trained(run.directory)[1].graph.live()
    one, two = chart("heatmap", everything).panels
    (heat,) = one.kind(Heat)
    np.testing.assert_array_equal(heat.values, live["to-first"][:, :, 0, 0])
    (heat,) = two.kind(Heat)
    second, output = live["to-second"][:, :, 0, 0], live["to-output"][:, :, 0, 0]
    # Rows second, output; columns input (8), first (16), second (16).
    assert heat.values.shape == (16 + 32, 8 + 16 + 16)
    np.testing.assert_array_equal(heat.values[:16, :24], second)
    np.testing.assert_array_equal(heat.values[16:, 8:], output)
    assert np.isnan(heat.values[:16, 24:]).all()
    assert np.isnan(heat.values[16:, :8]).all()
    assert two.title.endswith(f"{int(second.sum() + output.sum()):,} of 1,408 live")


def test_large_matrices_are_averaged_and_kernels_count_their_positions() -> None:
    wide = Topology(
        groups=(NodeGroup(name="in", size=3), NodeGroup(name="out", size=401)),
        bundles=(
            Bundle(name="a", sources=("in",), destination="out", kernel=(3, 3), padding=1),
            Bundle(name="b", sources=("in",), destination="out", edges=((0, 0), (1, 0))),
        ),
        scopes=(Scope(name="s", bundles=("a", "b")),),
    )
    counts = [np.zeros((401, 3)), np.zeros((401, 3))]
    counts[0][0, 0], counts[1][1, 0], counts[0][400, 2] = 6, 1, 9
    panel = Part("s", wide, list(wide.bundles), counts).panel()
    values = panel.kind(Heat)[0].values
    assert values.shape == (134, 3)  # three rows in one, the last cell holds two
    assert values[0, 0] == pytest.approx(7 / (27 + 2))
    assert values[-1, 2] == pytest.approx(9 / 18)


def test_a_pool_over_many_layers_is_drawn_layer_by_layer(tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(6)]
    chain = Topology(
        groups=tuple(NodeGroup(name=name, size=4) for name in names),
        bundles=tuple(
            Bundle(name=f"to-{b}", sources=(a,), destination=b)
            for a, b in itertools.pairwise(names)
        ),
        scopes=(Scope(name="pool", bundles=tuple(f"to-{b}" for b in names[1:]), budget=9),),
    )
    fake = FakeStudy(tmp_path)
    trial = fake.trial(fake.ask(0))
    spec = json.loads((trial / "spec.json").read_text())
    spec["model"]["topology"] = chain.to_dict()
    write_json(trial / "spec.json", spec)
    tensors = {"pool.edges": torch.arange(0, 80, 9), "pool.weights": torch.ones(9)}
    write_tensors(trial / "wirings" / "epoch-0000.safetensors", tensors)
    panels = chart("heatmap", select([str(trial)], tmp_path)).panels
    wanted = zip(names[1:], (2, 2, 2, 2, 1), strict=True)
    assert [panel.title for panel in panels] == [
        f"pool, {name}: {live} of 16 live" for name, live in wanted
    ]


def test_weight_histograms_hold_the_weights_that_learn(everything: Selection) -> None:
    (panel,) = chart("weights", everything).panels
    learn, live = panel.kind(Bars)
    network = load_trained(everything.best.directory)[1]
    total = sum(int(mask.sum()) for mask in network.graph.learn().values())
    assert panel.title.startswith(f"dense ({total:,};")
    width = learn.edges[1] - learn.edges[0]
    assert width * learn.heights.sum() == pytest.approx(1, abs=0.01)
    # DNW keeps the largest magnitudes: there is a hole around zero.
    assert live.heights[len(live.heights) // 2] == 0
    assert learn.heights[len(learn.heights) // 2] > 0


def test_weights_of_parallel_operators_are_kept_apart(tmp_path: Path) -> None:
    fake = FakeStudy(tmp_path)
    trial = fake.ask(0)
    fake.epoch(trial, 1)
    path = fake.trial(trial) / "spec.json"
    spec = json.loads(path.read_text())
    spec["model"]["topology"]["bundles"][0]["op"] = {"name": "adder"}
    write_json(path, spec)
    panels = chart("weights", select(["fake"], tmp_path)).panels
    edges = fake.networks[trial].graph.live()
    adder = int(edges["to-first"].sum())
    assert [panel.title.split(";")[0] for panel in panels] == [
        f"adder ({adder:,}",
        f"dense ({sum(int(m.sum()) for m in edges.values()) - adder:,}",
    ]


def test_the_better_fit_has_the_higher_likelihood() -> None:
    generator = np.random.default_rng(0)
    bell = generator.normal(0.3, 2.0, 20_000)
    tent = generator.laplace(-0.2, 0.5, 20_000)
    fit = gaussian(bell)
    assert (fit.middle, fit.scale) == pytest.approx((0.3, 2.0), abs=0.05)
    exact = -0.5 * math.log(2 * math.pi * math.e * 4)
    assert fit.likelihood == pytest.approx(exact, abs=0.02)
    fit = laplace(tent)
    assert (fit.middle, fit.scale) == pytest.approx((-0.2, 0.5), abs=0.02)
    assert fit.likelihood == pytest.approx(-1 - math.log(1.0), abs=0.02)
    assert gaussian(bell).likelihood > laplace(bell).likelihood
    assert laplace(tent).likelihood > gaussian(tent).likelihood


def test_filters_are_those_of_the_stem(everything: Selection) -> None:
    network = load_trained(everything.best.directory)[1]
    weight = network.stem[0].weight.detach().double().numpy()
    ((_, found),) = first_filters(network)
    np.testing.assert_array_equal(found.detach(), weight.astype(np.float32))
    values = chart("filters", everything).panels[0].kind(Heat)[0].values
    assert values.shape == (11, 11)  # 3 x 3 tiles of 3 x 3 with gaps of 1
    np.testing.assert_array_equal(values[:3, 4:7], weight[1, 0])
    np.testing.assert_array_equal(values[4:7, :3], weight[3, 0])
    assert np.isnan(values[3]).all()


def test_tiles_keep_their_order_and_colours() -> None:
    tiles = np.arange(2 * 2 * 2 * 3, dtype=np.float64).reshape(2, 2, 2, 3)
    image = mosaic(tiles, -1.0)
    assert image.shape == (2, 5, 3)
    np.testing.assert_array_equal(image[:, 3:], tiles[1])
    assert (image[:, 2] == -1).all()


def test_discriminants_of_few_images_and_of_dead_nodes_are_drawn() -> None:
    values = np.random.default_rng(0).normal(size=(20, 42))
    values[:, 3] = 0
    for images in (values, values[:, :3], np.tile(values, (4, 1))):
        classes = np.arange(len(images)) % 10
        drawn = projections(images, classes)
        assert [title[:3] for title, _ in drawn] == ["PCA", "LDA"]
        assert all(points.shape == (len(images), 2) for _, points in drawn)
        assert all(np.isfinite(points).all() for _, points in drawn)


def test_features_are_what_the_classifier_reads(everything: Selection) -> None:
    network = load_trained(everything.best.directory)[1].eval()
    x = torch.randn(5, 1, 8, 8)
    features = penultimate(network, x)
    linear = network.head[-1]
    torch.testing.assert_close(linear(features), network(x))
    panels = chart("features", everything).panels
    assert [panel.title.split(":")[0] for panel in panels] == ["PCA", "LDA"]
    classes = panels[0].kind(Points)
    assert [points.label for points in classes] == [str(digit) for digit in range(10)]


def test_density_is_the_share_of_usable_edges_that_live(everything: Selection) -> None:
    validation, test = chart("density", everything).panels
    dnw, random = validation.kind(Points)
    usable = 128 + 384 + 1024
    assert dnw.x.tolist() == [row["live_edges"] / usable for row in _last_rows(everything)[:2]]
    assert dnw.y.tolist() == [run.accuracy for run in everything.runs[:2]]
    assert random.hover == ("fake/0002",)
    assert [points.label for points in test.kind(Points)] == ["dense · dnw"]


def _last_rows(selection: Selection) -> list[dict[str, Any]]:
    return [run.rows[-1] for run in selection.runs if run.rows]


def test_a_study_given_to_a_kind_of_single_trials_shows_the_most_accurate(
    everything: Selection,
) -> None:
    assert everything.best.name == "fake/0000"
    assert chart("heatmap", everything).title.startswith("fake/0000")


def test_what_a_trial_and_a_study_leave_is_sent_to_mlflow(study: FakeStudy) -> None:
    write_trial_figures(study.trial("0000"))
    write_study_figures(study.directory)
    write_trial_figures(study.trial("0003"))  # it has not reached an epoch
    records = StudyRecords(study.directory)
    sent = {path.name: path for path in records.trials()[0].files()}
    assert {f"{kind}.png" for kind in OF_TRIAL} <= set(sent)
    assert sum(path.stat().st_size for n, path in sent.items() if n.endswith(".png")) < 400_000
    assert {f"{kind}.png" for kind in OF_STUDY} <= {path.name for path in records.files()}
    assert not (study.trial("0003") / "artifacts").exists()


def test_legends_take_as_many_rows_as_they_need() -> None:
    names = [f"a rather long name of an operator · a rule ({i})" for i in range(9)]
    marks = tuple(Line(np.arange(2.0), np.arange(2.0), label=name) for name in names)
    panel = Panel("a panel", marks, x=Axis("epoch"))
    low, high = (
        paint.figure(Chart("title", (panel,) * n, columns=3)).get_size_inches() for n in (1, 3)
    )
    assert low[1] - high[1] == pytest.approx(0.22 * 6)  # nine rows against three
    drawn = paint.figure(Chart("title", (panel,) * 3))
    drawn.canvas.draw()
    box = drawn.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= drawn.bbox.x1


def test_what_cannot_be_drawn_is_said_in_a_sentence(study: FakeStudy, tmp_path: Path) -> None:
    runs = study.directory.parent
    with pytest.raises(UnknownNameError, match="did you mean curves"):
        KINDS.get("curve")
    with pytest.raises(StudyError, match="no study and no run 'nothing'"):
        select(["nothing"], runs)
    empty = FakeStudy(tmp_path, "empty")
    with pytest.raises(StudyError, match="study 'empty' has no trial yet"):
        select(["empty"], tmp_path)
    empty.ask(0)
    with pytest.raises(StudyError, match="empty: no trial has completed an epoch"):
        chart("curves", select(["empty"], tmp_path))
    with pytest.raises(StudyError, match="no finished trial"):
        KINDS.get("front")().render(select(["empty"], tmp_path), "png")
    with pytest.raises(StudyError, match="front is that of one study"):
        KINDS.get("front")().render(select(["fake/0000"], runs), "png")


def test_the_command_prints_where_the_figure_lies(
    study: FakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from search.cli.plot import plot

    runs = study.directory.parent
    plot(["fake"], "density", None, None, runs, False, False)
    path = study.directory / "figures" / "density.png"
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes().startswith(PNG)
    plot(["fake"], "heatmap", tmp_path / "h.svg", None, runs, False, True)
    report = json.loads(capsys.readouterr().out)
    assert report == {"file": str(tmp_path / "h.svg"), "kind": "heatmap", "runs": ["fake/0000"]}
    plot(None, "curves", None, None, runs, True, True)
    listed = json.loads(capsys.readouterr().out)
    assert {"curves", "front", "swaps", "heatmap", "wiring"} <= {kind["name"] for kind in listed}
    assert all(kind["summary"] for kind in listed)
    with pytest.raises(ConfigError, match=r"must end in \.png, \.svg or \.html"):
        plot(["fake"], "curves", tmp_path / "h.gif", None, runs, False, False)
    with pytest.raises(ConfigError, match="at least one RUN or STUDY"):
        plot(None, "curves", None, None, runs, False, False)
