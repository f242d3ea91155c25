"""The page in a real browser without a network: tables, figures, radiographs, on a desktop and on a phone."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_run import Shape, specs, write_fake_run
from test_report import HOSTILE, ROADS, renamed

from ablate import tables
from ablate.report import write, write_report
from ablate.report.answer import Answer
from ablate.report.charts import FIGURES
from ablate.report.page import Section
from ablate.report.page import page as page_text
from ablate.report.render import Table
from ablate.report.run_data import read_run
from ablate.report.viewer import Gallery
from ablate.store import Store

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")

browser = pytest.mark.browser
needs_chromium = pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver")

SIZES = {"desktop": (1280, 900, False), "phone": (390, 844, True)}


def page_of(folder: Path, heading: str, caption: str, **viewer: Any) -> str:
    """Return the page of a run without a trial, with one table without rows."""
    run = read_run(Store.open(folder))
    sections = [Section(heading, (Table("t", caption, ("a",), ()),), open=True)]
    gallery = Gallery({"comparisons": [], **viewer}, (), ())
    answers = [Answer(heading, (caption,), (caption,))]
    return page_text(run, answers, sections, {}, gallery, {}, (), written_at="now")


def test_data_in_the_page_can_neither_end_its_script_nor_open_a_comment(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028\u2029 é & 😀 '"
    text = page_of(tmp_path, hostile, hostile, images={hostile: []})
    found = re.search(r'<script type="application/json" id="data">(.*)</script>\n<script>', text)
    assert found is not None
    assert json.loads(found[1])["viewer"]["images"] == {hostile: []}
    assert not set("<>&'") & set(found[1])
    assert found[1].isascii()
    assert "<script>alert(1)" not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    with pytest.raises(ValueError, match="JSON"):
        page_of(tmp_path, "", "", points=float("nan"))


@contextmanager
def opened(page: Path, profile: Path, width: int, height: int, mobile: bool, scheme: str = "light") -> Iterator[Any]:
    """Open a page from disk with the network off; fails on any console error."""
    selenium = pytest.importorskip("selenium.webdriver")
    options = selenium.ChromeOptions()
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        driver.get(page.as_uri())
        yield driver
        assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    finally:
        driver.quit()


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the page did not get there"
        time.sleep(0.05)


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def texts(driver: Any, selector: str) -> list[str]:
    return [str(text) for text in driver.execute_script(
        "return Array.from(document.querySelectorAll(arguments[0]), (e) => e.textContent)", selector
    )]  # fmt: skip


def click(driver: Any, element: Any) -> None:
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trials = specs(datasets=["cephalo", "chest"], methods=["ddpm", "mocov3", "scratch"], shots=[5, "all"], seeds=[0, 1])
    shapes = {"cephalo": Shape(8, 4, duplicates=2), "chest": Shape(5, 3, "px", 0)}
    store = write_fake_run(folder, trials, shapes=shapes, failed=[0], missing=[1])
    with pytest.MonkeyPatch.context() as patch:
        kinds = ("MRE against shots", "SDR curves", "MRE of each landmark", "Average ranks")
        patch.setattr(write, "FIGURES", {kind: FIGURES[kind] for kind in kinds})
        write_report(store)
    return folder / "report" / "index.html"


@browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_draws_all_figures_and_says_what_is_missing(
    page: Path, tmp_path: Path, size: str, scheme: str
) -> None:
    width, height, mobile = SIZES[size]
    with opened(page, tmp_path, width, height, mobile, scheme) as driver:
        assert "1 of 24 planned trials have no result yet" in find(driver, "#missing").text
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        order = driver.execute_script("return Array.from(document.querySelectorAll('main [id]'), (e) => e.id)")
        parts = [name for name in order if name in ("answer", "tables", "figures", "viewer", "more", "missing", "run")]
        assert parts == ["answer", "tables", "figures", "viewer", "more", "missing", "run"]
        assert find(driver, "#answer li").text.startswith("5 shots: ")
        assert find(driver, "#answer").rect["y"] < 400
        cards = driver.find_elements("css selector", "[data-figure]")
        for card in cards:
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
            until(lambda card=card: card.find_elements("css selector", ".main-svg"))
        assert len(cards) == 2 + 4 + 2 + 1
        back = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        front = driver.execute_script("return getComputedStyle(document.querySelector('.xtick text')).fill")
        assert front == driver.execute_script("return getComputedStyle(document.body).color")


@browser
@needs_chromium
def test_numbers_are_told_on_hover(page: Path, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains

    with opened(page, tmp_path, *SIZES["desktop"]) as driver:
        card = find(driver, "[data-figure='mre-shots-chest']")
        driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
        until(lambda: card.find_elements("css selector", ".point"))
        ActionChains(driver).move_to_element(card.find_elements("css selector", ".point")[0]).perform()
        until(lambda: card.find_elements("css selector", ".hovertext"))
        told = card.find_element("css selector", ".hovertext").text
        assert "5 shots, 2 seeds" in told
        assert "MRE (px)" in told


@browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES)
def test_tables_are_sorted_and_filtered_and_their_latex_is_copied(page: Path, tmp_path: Path, size: str) -> None:
    with opened(page, tmp_path, *SIZES[size]) as driver:
        for permission in ("clipboard-read", "clipboard-write"):
            driver.execute_cdp_cmd("Browser.setPermission", {"permission": {"name": permission}, "setting": "granted"})
        table = "#table-mre-chest"
        assert texts(driver, f"{table} td:first-child") == ["DDPM ¶", "MoCo v3 ¶", "scratch"]
        values = f"{table} tbody tr td:nth-child(2)"

        def shown() -> list[float]:
            return [float(text.split()[0]) for text in texts(driver, values)]

        button = find(driver, f"{table} .sort[data-column='1']")
        click(driver, button)
        assert shown() == sorted(shown())
        assert find(driver, f"{table} th[aria-sort]").get_attribute("aria-sort") == "ascending"
        click(driver, button)
        assert shown() == sorted(shown(), reverse=True)
        find(driver, f"{table} .filter").send_keys("moco")
        assert texts(driver, f"{table} tbody tr:not([hidden]) td:first-child") == ["MoCo v3 ¶"]
        click(driver, find(driver, f"{table} .copy[data-form='latex']"))
        until(lambda: find(driver, f"{table} .copied").text == "copied")
        copied = driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        assert copied == (page.parent / "tables" / "mre-chest.tex").read_text()


@browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES)
def test_the_viewer_steps_by_keyboard_and_switches_landmarks(page: Path, tmp_path: Path, size: str) -> None:
    from selenium.webdriver import Keys

    with opened(page, tmp_path, *SIZES[size]) as driver:
        view, status = find(driver, "#view"), find(driver, "#v-status")
        driver.execute_script("arguments[0].scrollIntoView()", view)
        assert status.text.startswith("image 1 of 8: 000.jpg (also in train or val)")
        assert status.text.endswith("all shots")
        assert len(driver.find_elements("css selector", "#v-panes svg")) == 3
        driver.execute_script("arguments[0].focus()", view)
        view.send_keys(Keys.ARROW_RIGHT)
        assert status.text.startswith("image 2 of 8: 001.jpg")
        view.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
        assert status.text.startswith("image 8 of 8")
        view.send_keys(Keys.ARROW_DOWN)
        assert status.text.endswith("5 shots")
        assert "no result at these shots" in texts(driver, "#v-panes figcaption")[0]  # its trials failed or are missing
        circles = driver.find_elements("css selector", "#v-panes circle")
        assert len(circles) == 2 * 2 * 4  # networks, truth and prediction, landmarks
        view.send_keys("l")
        assert driver.find_elements("css selector", "#v-panes circle") == []
        click(driver, find(driver, "#v-rows input"))
        assert len(driver.find_elements("css selector", "#v-panes svg")) == 2
        driver.execute_script(
            "const s = document.getElementById('v-comparison'); s.value = 1; s.dispatchEvent(new Event('change'))"
        )
        assert "of 5" in status.text
        assert all(" px " in text for text in texts(driver, "#v-panes figcaption"))


@browser
@needs_chromium
def test_points_lie_where_the_tables_say(page: Path, tmp_path: Path) -> None:
    errors = tables.read_frame(Store.open(page.parents[1]), "errors", filters=[("image", "==", "000.jpg")])
    with opened(page, tmp_path, *SIZES["desktop"]) as driver:
        drawn = driver.execute_script(
            "return Array.from(document.querySelectorAll('#v-panes svg')[2].querySelectorAll('circle[fill=none]'), "
            "(c) => [Number(c.getAttribute('cx')), Number(c.getAttribute('cy'))])"
        )
    truth = errors[["landmark", "x_true", "y_true"]].drop_duplicates()
    for x, y in drawn:  # thumbnails have the size of the originals here, and a pixel's centre lies at its half
        near = ((truth["x_true"] + 0.5 - x).abs() < 0.02) & ((truth["y_true"] + 0.5 - y).abs() < 0.02)
        assert near.any()
    assert len(drawn) == 4


@browser
@needs_chromium
def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    trials = specs(datasets=["cephalo", "chest"], methods=["ddpm", "scratch"], shots=[5, 10], seeds=[0, 1])
    shapes = {"cephalo": Shape(4, 2), "chest": Shape(4, 2, "px")}
    store = write_fake_run(tmp_path / "run", trials, shapes=shapes, failed=[0])
    names = {"cephalo": ROADS, "chest": HOSTILE, "ddpm": '"><img src=x onerror=alert(1)>', "001.jpg": HOSTILE}
    renamed(store, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "FIGURES", {"MRE against shots": FIGURES["MRE against shots"]})
        write_report(store)
    with opened(tmp_path / "run/report/index.html", tmp_path / "profile", *SIZES["desktop"]) as driver:
        for card in driver.find_elements("css selector", "[data-figure]"):
            driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
            until(lambda card=card: card.find_elements("css selector", ".main-svg"))
        assert driver.find_elements("css selector", "main script, main img[src=x]") == []
        assert find(driver, "h1").text == HOSTILE
        assert any('"><img src=x onerror=alert(1)>' in text for text in texts(driver, "[data-figure] .legendtext"))


@browser
@needs_chromium
@pytest.mark.parametrize("size", SIZES)
def test_on_paper_every_table_is_open_and_no_figure_is_cut(page: Path, tmp_path: Path, size: str) -> None:
    with opened(page, tmp_path, *SIZES[size]) as driver:
        assert driver.find_elements("css selector", "details:not([open])")
        driver.execute_script("dispatchEvent(new Event('beforeprint'))")
        paper = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", paper)
        assert driver.find_elements("css selector", "details:not([open])") == []
        script = """
            return Array.from(document.querySelectorAll("[data-figure]")).map((card) => {
              const edge = card.getBoundingClientRect().right;
              return Array.from(card.querySelectorAll(".main-svg")).map((s) => s.getBoundingClientRect().right - edge);
            });"""
        beyond = driver.execute_script(script)
        assert all(card for card in beyond)
        assert max(max(card) for card in beyond) <= 0
        driver.execute_script("dispatchEvent(new Event('afterprint'))")
        assert driver.find_elements("css selector", "details:not([open])")
