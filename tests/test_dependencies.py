"""The list of dependencies is true: what the package imports is declared, and what is declared is imported."""

import ast
import functools
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

NOT_IMPORTED = {
    "plotly": "the report's page copies plotly.min.js out of it",
}
"""Dependencies that no module imports, and why they are needed."""

LAZY = {"click": "clusters", "jsonschema": "clusters", "pydicom": "dicom"}
"""What is imported inside functions alone and comes with an extra, by the extra."""

EXTRAS = {
    "clusters": "obstore's provider of credentials imports boto3",
    "gcp": "Ray's launcher for Google Cloud imports them",
    "azure": "Ray's launcher for Azure imports them",
    "dicom": "pydicom's decoders of compressed pixels",
    "tensorboard": "Ray's logger imports tensorboardX",
    "mlflow": "Ray's logger imports mlflow",
    "wandb": "Ray's logger imports wandb",
}
"""Extras with distributions that no module imports, and why they are needed."""

FOR_DEVELOPERS = {"test", "dev"}


def normalised(requirement):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def declared(extra=None):
    """Return the distributions of an extra, or without extras; other extras that it includes are left out."""
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    return {normalised(requirement) for requirement in listed} - {"ablate"}


@functools.cache
def imported():
    """Return every distribution that the package imports, and whether some import of it stands outside functions."""
    names = {}
    for path in (ROOT / "ablate").rglob("*.py"):
        tree = ast.parse(path.read_text())
        lazy = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for name in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"ablate"}:
                names[name] = names.get(name, False) or id(node) not in lazy
    distributions = packages_distributions()
    return {normalised(distribution): eager for name, eager in names.items() for distribution in distributions[name]}


def test_everything_imported_is_declared():
    found = imported()
    assert found.keys() - declared() == LAZY.keys()
    for name, extra in LAZY.items():
        assert name in declared(extra)
        assert not found[name]


def test_every_dependency_is_imported_or_has_its_reason():
    assert declared() - imported().keys() == NOT_IMPORTED.keys()


def test_every_extra_is_imported_or_has_its_reason():
    extras = PROJECT["optional-dependencies"].keys() - FOR_DEVELOPERS
    assert {extra for extra in extras if declared(extra) - declared() - imported().keys()} == EXTRAS.keys()


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_nothing_is_declared_twice(extra):
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    assert len({normalised(requirement) for requirement in listed}) == len(listed)


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_the_extras_that_an_extra_includes_exist(extra):
    included = [
        name
        for requirement in PROJECT["optional-dependencies"][extra]
        if requirement.startswith("ablate[")
        for name in requirement.removeprefix("ablate[").removesuffix("]").split(",")
    ]
    assert set(included) <= PROJECT["optional-dependencies"].keys()
