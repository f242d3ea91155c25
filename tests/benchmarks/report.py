"""Time and memory of a report about 4.75 million error rows.

Run it by `python tests/benchmarks/report.py`: it generates a run of 1 000 trials with 250 test images of 19 landmarks,
reports it in a process of its own and prints its time and peak memory. The exit code is 1 if it takes 60 s or 2 GB, or
if the page has 20 MB.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_run import Shape, specs, write_fake_run

METHODS = ("ddpm", "mocov3", "mocov2", "simclr", "simclrv2", "dino", "byol", "barlow_twins", "imagenet", "scratch")
MOST_SECONDS, MOST_BYTES, MOST_PAGE_BYTES = 60.0, 2e9, 20e6

REPORT = """
import sys
from ablate.report import write_report
from ablate.store import Store
print("\\n".join(write_report(Store.open(sys.argv[1])).lines()))
"""


def main() -> int:
    """Generate, report, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keep the generated run here, or use the one that is here")
    parser.add_argument("--shots", type=int, default=5, help="numbers of shots; 5 give 1 000 trials")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "run"
        if not (folder / "tables").is_dir():
            start = time.monotonic()
            datasets = ("cephalo", "skulls")
            trials = specs(
                datasets=datasets,
                methods=METHODS,
                shots=[5, 10, 25, 50, "all"][: arguments.shots],
                seeds=range(10),
            )
            shape = Shape(num_images=250, num_landmarks=19, duplicates=20)
            write_fake_run(folder, trials, shapes=dict.fromkeys(datasets, shape))
            print(f"generated {len(trials)} trials in {time.monotonic() - start:.0f} s")
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", REPORT, str(folder)], check=True)
        seconds = time.monotonic() - start
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak_bytes = used.ru_maxrss * 1024
        page_bytes = (folder / "report" / "index.html").stat().st_size
    processor = used.ru_utime + used.ru_stime
    print(f"{seconds:.1f} s ({processor:.1f} s of processor time), {peak_bytes / 1e9:.2f} GB at most, "
          f"page {page_bytes / 1e6:.1f} MB")  # fmt: skip
    return int(seconds > MOST_SECONDS or peak_bytes > MOST_BYTES or page_bytes > MOST_PAGE_BYTES)


if __name__ == "__main__":
    sys.exit(main())
