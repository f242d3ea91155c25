"""An exported tuning in optuna-dashboard, in a real browser."""

import shutil
import subprocess
import sys
import time
from socket import socket
from urllib.request import urlopen

import pytest
from test_tuning import by_rate, play
from tuned import load_space

from ablate.tuning.export import export_storage

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver")
def test_the_dashboard_lists_every_study_and_shows_its_best_value(tmp_path):
    pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard, from the test extra")
    selenium = pytest.importorskip("selenium.webdriver")
    grid = load_space(tmp_path / "space.yaml")
    courses = [play(study, by_rate)[0] for study in grid.studies]
    export_storage(courses, tmp_path / "tuning.db")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    storage = f"sqlite:///{tmp_path / 'tuning.db'}"
    code = f"from optuna_dashboard import run_server; run_server({storage!r}, '127.0.0.1', {port})"
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL)
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    driver = None
    try:
        until(lambda: urlopen(f"http://127.0.0.1:{port}/api/studies").status == 200)
        driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
        driver.get(f"http://127.0.0.1:{port}/dashboard")
        for course in courses:
            name = f"{course.study.arm}, {course.study.place.replace(',', ', ')}"
            until(lambda name=name: name in driver.find_element("css selector", "body").text)
        driver.get(f"http://127.0.0.1:{port}/dashboard/studies/1")
        best = min(found.value for found in courses[0].configurations if found.state == "finished")
        until(lambda: f"{best:.4f}"[:5] in driver.find_element("css selector", "body").text)
    finally:
        if driver is not None:
            driver.quit()
        server.terminate()
        server.wait()


def until(done, seconds=60):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)
