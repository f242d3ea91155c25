"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def xray_data() -> Path:
    """Folder with real radiographs in the public layouts; tests that need it skip where it is missing."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ABLATE_TEST_DATA", default))
    if not (folder / "cephalo" / "jpg").is_dir():
        pytest.skip(f"needs real radiographs: set ABLATE_TEST_DATA to a folder with cephalo/jpg (looked in {folder})")
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep prepared data of tests out of the user's own cache."""
    if "ABLATE_CACHE" not in os.environ:
        monkeypatch.setenv("ABLATE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
