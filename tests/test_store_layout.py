"""The paths of a run directory, which runs of earlier versions have too, and the one way to write a local file."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.store import Store, layout
from ablate.store.local_write import replacing, write_local

HOME = layout.trial_folder("0123456789ab")
SHARED = layout.pretrained_folder("k1")


@pytest.mark.parametrize(
    ("path", "spelled"),
    [
        (layout.RUN_FILE, "run.yaml"),
        (SHARED, "pretrained/k1"),
        (layout.step_folder(SHARED, 800), "pretrained/k1/step_000800"),
        (layout.step_folder(layout.state_folder(SHARED), 5), "pretrained/k1/state/step_000005"),
        (layout.log_file(SHARED), "pretrained/k1/log.txt"),
        (HOME, "trials/0123456789ab"),
        (layout.pretrained_folder("k1", "0123456789ab"), "trials/0123456789ab/pretrained"),
        (layout.state_folder(HOME), "trials/0123456789ab/state"),
        (layout.log_file(HOME), "trials/0123456789ab/log.txt"),
        (f"{HOME}/{layout.MODEL}", "trials/0123456789ab/model.safetensors"),
        (f"{HOME}/{layout.SPEC}", "trials/0123456789ab/spec.json"),
        (layout.part_file("errors", "0123456789ab"), "tables/errors/0123456789ab.parquet"),
        (layout.thumbnail_index("hand"), "pictures/hand/index.json"),
        (layout.thumbnail_file("hand", "3128.jpg"), "pictures/hand/3128.jpg.jpg"),
        (layout.strips_file("k1"), "pictures/ddpm/k1.png"),
        (layout.REPORT, "report"),
        (layout.reference_file("di-via"), "references/di-via.csv"),
        (layout.TENSORBOARD, "tensorboard"),
        (layout.LOCK, ".ablate/lock.json"),
        (layout.GUARD, ".ablate/guard"),
        (layout.PROGRESS, ".ablate/progress.json"),
        (layout.stop_request("abc"), ".ablate/stop-abc"),
    ],
)
def test_a_path_stays_as_it_is_so_that_a_run_of_an_earlier_version_goes_on(path: str, spelled: str) -> None:
    assert path == spelled


# --- one local file ---------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_as_a_whole_and_nothing_else_stays(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file"
    write_local(path, b"before", durable=durable)
    with replacing(path, durable=durable) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert path.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_local(path, b"before")

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_may_be_kept_from_other_users(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_local(tmp_path / "own", b"1", mode=0o600)
        write_local(tmp_path / "all", b"1")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("own", "all")]
    assert modes == [0o600, 0o644]


@pytest.mark.parametrize("name", ["n" * 255, "\N{GREEK SMALL LETTER MU}" * 127])
def test_the_longest_names_can_be_written_and_what_a_kill_leaves_of_them_is_cleaned(tmp_path: Path, name: str) -> None:
    write_local(tmp_path / name, b"1")
    assert (tmp_path / name).read_bytes() == b"1"
    code = (
        "import os, signal, sys; from pathlib import Path; from ablate.store.local_write import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(Store.open(tmp_path).clean_temporaries(older_than_s=0)) == 1
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"1"]
