"""Who may import whom: imports point down, and what is heavy or special is imported in one place."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "ablate"

LAYERS = (
    ("space", "spot"),
    ("training", "store", "stats"),
    ("lock", "fitting"),
    ("stopping", "results", "datasets", "policy", "models", "augment"),
    ("heatmaps", "costs"),
    ("metrics", "pretrain", "simulate"),
    ("evaluate",),
    ("finetune", "pictures"),
    ("attempt", "saving", "preflight"),
    ("rows", "run_file"),
    ("trial",),
    ("display", "inspection", "prediction"),
    ("supervision", "tuner"),
    ("watching", "single", "doctor"),
    ("summary", "driver", "report"),
    ("launch",),
    ("api",),
    ("cli",),
)
"""The modules from bottom to top; a module imports only what stands in a lower row."""

RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

ONLY_IN = {
    "ray": {"tuner", "launch"},
    "jsonschema": {"launch"},
    "optuna": {"tuner"},
    "lightly": {"pretrain"},
    "diffusers": {"models", "pretrain"},
    "segmentation_models_pytorch": {"models"},
    "typer": {"cli"},
    "plotly": {"report"},
    "pydicom": {"datasets"},
    "obstore": {"store", "lock", "datasets"},
    "tenacity": {"store", "datasets"},
    "filelock": {"datasets"},
}
"""Libraries that are wrapped once."""

WITHOUT_TORCH = {
    "space",
    "store",
    "results",
    "stats",
    "datasets",
    "policy",
    "report",
    "inspection",
    "spot",
    "lock",
    "stopping",
    "fitting",
    "watching",
    "simulate",
    "costs",
    "launch",
}


def imports():
    """Yield (module of ours, what it imports) for every import statement, also those inside functions."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield parts[0], alias.name
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                if node.module == "ablate":
                    for alias in node.names:
                        yield parts[0], f"ablate.{alias.name}"
                else:
                    yield parts[0], node.module


def test_every_module_has_its_place():
    names = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert names - {"__init__"} == set(RANK)


def test_imports_point_down():
    wrong = []
    for module, imported in imports():
        target = imported.split(".")[1] if imported.startswith("ablate.") else None
        if target in RANK and target != module and RANK[target] >= RANK[module]:
            wrong.append(f"{module} imports {target}")
    assert sorted(set(wrong)) == []


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_library_is_wrapped_in_one_place(library):
    assert {module for module, imported in imports() if imported.split(".")[0] == library} <= ONLY_IN[library]


def test_torch_stays_out_of_what_reads_and_counts():
    users = {module for module, imported in imports() if imported.split(".")[0] in ("torch", "torchvision")}
    assert users & WITHOUT_TORCH == set()


def test_a_trial_needs_no_ray():
    code = "import sys; sys.modules['ray'] = None; import ablate.trial"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_itself_imports_nothing():
    code = "import sys; import ablate; print([name for name in sys.modules if name.startswith('ablate.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
