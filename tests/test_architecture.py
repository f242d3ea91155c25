"""Who may import whom: arrows point down, between rooms and within them; special libraries are wrapped once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ablate.space import METHODS, NETWORKS

PACKAGE = Path(__file__).resolve().parents[1] / "ablate"


def modules_of(table):
    """Return the modules of a table's rows, by their last names."""
    return tuple(sorted({row.code.rpartition(".")[2] for row in table.values() if row.code is not None}))


ROOMS = (
    ("errors", "words", "revision"),
    ("space", "training", "stats"),
    ("store",),
    ("tables", "datasets"),
    ("network", "tuning"),
    ("schedule",),
    ("pretrain",),
    ("finetune",),
    ("stage",),
    ("bench", "running", "predict", "report"),
    ("doctor",),
    ("launch",),
    ("api",),
    ("cli",),
    ("__main__",),
)
"""The rooms from bottom to top; a room imports only what stands in a lower row."""

INSIDE = {
    "space": (
        ("files", "noise", "spec"),
        ("explain", "finetuning", "networks", "pretrain"),
        ("whole",),
        ("methods",),
        ("trial",),
        ("fields", "lengths"),
        ("equal", "tune"),
        ("grid", "words"),
    ),
    "training": (
        ("execution", "graphs", "groups", "memory", "randomness", "state"),
        ("compiling", "passes", "progress"),
    ),
    "stats": (
        ("coverage", "samples"),
        ("budgets", "ranks", "resamples", "selection"),
        ("crossed",),
        ("curves", "efficiency", "two_way"),
        ("bootstrap",),
        ("comparison",),
    ),
    "store": (
        ("errors", "local_write", "manifest", "owner"),
        ("addresses", "layout", "patience"),
        ("files",),
        ("lock_file", "publishing", "run_file"),
        ("fence", "stopping"),
        ("lock",),
    ),
    "tables": (("schemas",), ("columns", "comparison", "parts")),
    "tuning": (("configuration",), ("course", "roles", "sampling"), ("records",), ("export",)),
    "datasets": (
        ("types",),
        ("cache", "checksums", "images", "splitting", "synthetic"),
        ("balance", "contents", "duplicates", "layout", "mirrored"),
        ("builtin", "landmark_table"),
        ("folder", "places"),
        ("remote",),
        ("source",),
        ("importing", "loading"),
        ("check", "preview"),
    ),
    "datasets.importing": (
        ("options",),
        ("exports",),
        ("csv_heads", "cures", "matching"),
        ("coco", "csv_table", "cvat", "labelme", "labelstudio", "slicer"),
        ("formats", "report", "write"),
        ("importer",),
    ),
    "network": (
        ("augment", "base", "heatmaps", "hub", "matching", "timesteps"),
        modules_of(NETWORKS),
        ("building",),
        ("flops", "metrics", "weights"),
        ("evaluation", "starting"),
        ("imagenet",),
    ),
    "schedule": (
        ("bench_file", "fitting", "flops", "stages"),
        ("costs", "machine", "policy"),
        ("rounds",),
        ("benched", "jobs"),
        ("orders",),
        ("lookahead",),
        ("simulate",),
        ("forecast",),
    ),
    "bench": (
        ("device", "images"),
        ("loops",),
        ("parts",),
        ("ceilings", "rows"),
        ("words", "worker"),
        ("measuring",),
    ),
    "pretrain": (
        ("contrastive", "heads", "views"),
        ("base",),
        ("crops", "moco", "negatives", "whole"),
        (*modules_of(METHODS), "methods"),
        ("loop",),
    ),
    "finetune": (
        ("losses", "rates", "shots"),
        ("mean_shape", "objectives"),
        ("validation",),
        ("loop",),
    ),
    "stage": (
        ("log", "pictures", "settings"),
        ("checkpoints", "machine", "starts"),
        ("inputs", "task"),
        ("attempt",),
        ("rows",),
        ("trial",),
    ),
    "report": (
        ("chart_kinds", "metrics", "render", "roles", "style", "ticks"),
        ("grouping", "rank_layout"),
        ("conditions", "folds", "literature", "mean_shapes", "noise_levels", "paper_pixels"),
        ("run_data",),
        ("intervals", "selection"),
        ("published",),
        ("kept", "pivot"),
        ("analysis",),
        ("axis_charts", "estimates", "rankings", "run_tables", "tunings"),
        ("comparison_tables", "suspects"),
        ("charts", "comparing"),
        ("answer", "figures", "interactive"),
        ("pictures",),
        ("shown", "viewer"),
        ("page",),
        ("write",),
    ),
    "running": (
        ("checks", "events", "naming", "options", "picture", "resources", "sessions", "spot"),
        ("inspection", "joining", "plan_words", "tuner"),
        ("remaining",),
        ("display", "recorder"),
        ("supervision", "ray_tune"),
        ("driver", "single", "watching"),
    ),
    "running.ray_tune": (
        ("demand", "nodes", "trackers", "worker"),
        ("cluster", "searcher", "spot_watch"),
        ("stages",),
    ),
    "cli": (
        ("completion", "interrupts"),
        ("shared",),
        ("bench", "data", "looking", "planning", "reference", "running", "tuning"),
        ("clusters",),
        ("app",),
        ("entry",),
        ("__main__",),
    ),
    "doctor": (("looking", "report"), ("judging",), ("examination",)),
    "launch": (
        ("cluster_file", "memory", "pod"),
        ("backend", "ray_files"),
        ("estimate", "kubernetes", "prices", "skypilot", "slurm"),
        ("kinds", "ssh"),
        ("clouds", "outlook"),
        ("launching",),
    ),
    "launch.estimate": (("clock",), ("notes",), ("estimation",), ("words",)),
    "launch.ssh": (("hosts", "ray_jobs", "wheel"), ("ray_cluster",), ("backend",)),
    "launch.clouds": (
        ("machine_types",),
        ("common",),
        ("aws_check", "azure_check", "gcp_check"),
        ("aws_access", "azure_access", "check", "gcp_access"),
        ("access",),
        ("backend",),
    ),
    "launch.slurm": (("batch_script", "queue"), ("backend",)),
    "launch.kubernetes": (
        ("job_status", "kubectl", "manifests", "rayjob", "rayjob_fields"),
        ("rayjob_check",),
        ("backend",),
    ),
}
"""The same within each room. A room's `__init__` may be imported from rooms above, and imports from its own."""

ONLY_IN = {
    "ray": {"running.ray_tune", "launch.ray_files", "launch.ssh.ray_jobs"},
    "jsonschema": {"launch.ray_files"},
    "optuna": {"tuning"},
    "lightly": {"pretrain"},
    "diffusers": {"network.unet", "pretrain.ddpm", "pretrain.whole"},
    "segmentation_models_pytorch": {"network"},
    "typer": {"cli"},
    "plotly": {"report"},
    "jinja2": {"report.page"},
    "pydicom": {"datasets"},
    "obstore": {"store", "datasets"},
    "tenacity": {"store.patience", "datasets.remote"},
    "filelock": {"store.lock_file", "datasets", "launch.memory"},
    "psutil": {"store.owner"},
}
"""Libraries that are wrapped once."""

WITHOUT_TORCH = {
    "errors",
    "words",
    "revision",
    "space",
    "stats",
    "store",
    "tables",
    "datasets",
    "tuning",
    "schedule",
    "report",
}
WITHOUT_TORCH |= {"running", "doctor", "launch", "api", "cli"}


def _name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports():
    """Yield (module of ours, what it imports) for every import statement, also those inside functions."""
    for module, path in MODULES.items():
        if module == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield module, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                for alias in node.names:
                    yield module, f"{node.module}.{alias.name}"


def arrows():
    """Yield (module, module or package that it imports), both ours."""
    for module, imported in imports():
        parts = imported.split(".")
        if parts[0] != "ablate":
            continue
        for length in (len(parts), len(parts) - 1):
            target = ".".join(parts[1:length])
            if target and (target in MODULES or f"{target}.__init__" in MODULES):
                yield module, target
                break


def within(name, package):
    """Return which member of `package` a module is, or lies in; None if it is none, or the package itself."""
    if not package:
        return name.split(".")[0]
    rest = name.removeprefix(f"{package}.")
    return None if rest == name or rest == "__init__" else rest.split(".")[0]


def test_every_module_has_its_place():
    for package, rows in {"": ROOMS, **INSIDE}.items():
        members = {within(name, package) for name in MODULES} - {None, "__init__"}
        assert members == {name for row in rows for name in row}, package


def test_every_room_of_several_modules_has_its_order():
    packages = {name.removesuffix(".__init__") for name in MODULES if name.endswith(".__init__")}
    assert packages == set(INSIDE)


@pytest.mark.parametrize("package", ["", *INSIDE])
def test_arrows_point_down(package):
    rank = {name: number for number, row in enumerate({"": ROOMS, **INSIDE}[package]) for name in row}
    wrong = []
    for module, imported in arrows():
        one, other = within(module, package), within(imported, package)
        if None in (one, other) or one == other or "__init__" in (one, other):
            continue
        assert {one, other} <= rank.keys(), f"{module} imports {imported}: give both a row of INSIDE[{package!r}]"
        if rank[other] >= rank[one]:
            wrong.append(f"{module} imports {imported}")
    assert sorted(set(wrong)) == []


def test_a_room_does_not_import_itself_as_a_whole():
    wrong = [(module, to) for module, to in arrows() if f"{to}.__init__" in MODULES and module.startswith(f"{to}.")]
    assert wrong == []


def covers(names, module):
    return any(module == name or module.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_wrapped_in_one_place(library):
    users = {module for module, imported in imports() if imported.split(".")[0] == library}
    assert [module for module in users if not covers(ONLY_IN[library], module)] == []


def test_torch_stays_out_of_what_reads_and_counts():
    users = {module for module, imported in imports() if imported.split(".")[0] in ("torch", "torchvision")}
    assert [module for module in users if covers(WITHOUT_TORCH, module)] == []


def test_modules_are_short():
    assert [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 400] == []


def test_a_trial_needs_no_ray():
    code = "import sys; sys.modules['ray'] = None; import ablate.stage.trial"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_bench_needs_no_ray():
    modules = "ablate.cli.app, ablate.bench.measuring, ablate.bench.words, ablate.bench.worker"
    code = f"import sys; sys.modules['ray'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_itself_imports_nothing():
    code = "import sys; import ablate; print([name for name in sys.modules if name.startswith('ablate.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
