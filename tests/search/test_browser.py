"""`wiring.html` and `pareto.html` in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.figures import write_artifacts, write_pareto
from search.figures.history import History
from tests.search.fake_study import FakeStudy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and CHROMEDRIVER),
        reason="needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)",
    ),
]

EPOCHS = 3


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FakeStudy:
    fake = FakeStudy(tmp_path_factory.mktemp("runs"), trials=1)
    trial = fake.ask(0)
    for epoch in range(1, EPOCHS + 1):
        fake.epoch(trial, epoch)
    fake.end(trial)
    write_artifacts(fake.trial(trial))
    write_pareto(fake.directory)
    return fake


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="needs the package selenium")
    options = selenium.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,950"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, study: FakeStudy, epoch: int | None = None) -> Any:
    """The page of the trial, loaded anew, at an epoch of its own choice or of ours."""
    browser.get("about:blank")
    path = study.trial("0000") / "artifacts" / "wiring.html"
    browser.get(path.as_uri() + ("" if epoch is None else f"#epoch={epoch}"))
    return browser


def element(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def counts(browser: Any) -> dict[str, int]:
    """The totals of the table: usable, live, born, died."""
    cells = browser.find_elements("css selector", "#total td[data-count]")
    return {cell.get_attribute("data-count"): int(cell.text.replace(",", "")) for cell in cells}


def drawn(browser: Any, canvas: str = "graph") -> str:
    image: str = browser.execute_script(
        "return document.getElementById(arguments[0]).toDataURL()", canvas
    )
    return image


def test_moving_the_slider_changes_the_wiring_that_is_drawn_and_counted(
    browser: Any, study: FakeStudy
) -> None:
    from selenium.webdriver.common.keys import Keys

    history = History(study.trial("0000"))
    page = opened(browser, study, epoch=0)
    slider = element(page, "#slider")
    pictures = set()
    for snapshot in history.snapshots:
        assert element(page, "#epoch").text == f"epoch {snapshot.epoch}"
        found = counts(page)
        assert found["live"] == len(snapshot.edges)
        assert (found["born"], found["died"]) == (len(snapshot.born), len(snapshot.died))
        pictures.add(drawn(page))
        slider.send_keys(Keys.ARROW_RIGHT)
    assert len(pictures) == EPOCHS + 1


def test_a_page_opens_at_the_best_epoch_or_at_the_one_in_its_address(
    browser: Any, study: FakeStudy
) -> None:
    assert element(opened(browser, study), "#epoch").text == f"epoch {EPOCHS}"
    assert element(opened(browser, study, epoch=1), "#epoch").text == "epoch 1"


def test_arrow_keys_home_and_end_move_through_the_epochs(browser: Any, study: FakeStudy) -> None:
    from selenium.webdriver.common.keys import Keys

    page = opened(browser, study, epoch=0)
    body = element(page, "body")
    for key, epoch in (
        (Keys.ARROW_RIGHT, 1),
        (Keys.END, EPOCHS),
        (Keys.ARROW_LEFT, EPOCHS - 1),
        (Keys.HOME, 0),
    ):
        body.send_keys(key)
        assert element(page, "#epoch").text == f"epoch {epoch}"


def test_hovering_a_node_tells_its_degree_and_an_edge_its_weight_and_age(
    browser: Any, study: FakeStudy
) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = opened(browser, study, epoch=2)
    canvas = element(page, "#graph")
    width, height = canvas.size["width"], canvas.size["height"]
    tips = []
    for across in (0.0, 0.06, 0.1, 0.15):
        for down in range(-40, 41, 4):
            x, y = across * width - width * 0.45, down / 100 * height
            ActionChains(page, duration=0).move_to_element_with_offset(
                canvas, round(x), round(y)
            ).perform()
            tips.append(element(page, "#tip").text)
    nodes = [tip for tip in tips if "live edges in" in tip]
    edges = [tip for tip in tips if "weight" in tip]
    assert any(tip.startswith("input:") for tip in nodes)
    assert any("→" in tip and ("live for" in tip or "new this epoch" in tip) for tip in edges)


def test_a_scope_and_changes_only_can_be_singled_out(browser: Any, study: FakeStudy) -> None:
    page = opened(browser, study, epoch=1)
    whole = drawn(page)
    element(page, '#scopes tr[data-scope="0"]').click()
    one_scope = drawn(page)
    element(page, "#changes").click()
    assert len({whole, one_scope, drawn(page)}) == 3


def test_the_scheme_can_be_switched_to_dark(browser: Any, study: FakeStudy) -> None:
    page = opened(browser, study)
    light = element(page, "body").value_of_css_property("background-color")
    element(page, "#theme").click()
    assert element(page, "body").value_of_css_property("background-color") != light


def test_the_page_works_in_a_sandboxed_frame_without_its_own_origin(
    browser: Any, study: FakeStudy, tmp_path: Path
) -> None:
    source = study.trial("0000") / "artifacts" / "wiring.html"
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe sandbox="allow-scripts" width="1200" height="900" src="{source.as_uri()}">'
    )
    browser.get_log("browser")
    browser.get(outer.as_uri())
    browser.switch_to.frame(0)
    assert element(browser, "#epoch").text == f"epoch {EPOCHS}"
    browser.switch_to.default_content()
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_front_page_draws_its_points_offline(browser: Any, study: FakeStudy) -> None:
    browser.get_log("browser")
    browser.get((study.directory / "pareto.html").as_uri())
    points = browser.find_elements("css selector", ".scatterlayer .point")
    assert len(points) == 4  # one network, validation and test, against two costs
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
