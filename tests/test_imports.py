"""Imports flow one way: utils <- data, nn <- metrics <- vae_module <- callbacks <- entry points."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

MAY_IMPORT = {
    "utils": set(),
    "nn": {"utils"},
    "data": {"utils"},
    "metrics": {"utils", "data"},
    "vae_module": {"utils", "data", "nn", "metrics"},
    "report": {"utils", "data", "metrics"},
    "callbacks": {"utils", "data", "nn", "metrics", "vae_module", "report"},
}


def part_of(path: Path) -> str:
    """`data` for src/data/cif.py; `entry points` for what lies in src itself."""
    parts = path.relative_to(ROOT / "src").parts
    return parts[0] if len(parts) > 1 else "entry points"


def imported_modules(source: str) -> list[str]:
    """Dotted names that a module imports, anywhere in it; relative imports as a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(".")
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            found += [f"src.{n}" for n in names] if node.module == "src" else [node.module or ""]
    return found


def test_the_reader_of_imports():
    source = (
        "import torch\nfrom src.data import cif\nfrom src import nn\n"
        "def f():\n    import src.utils.config\n    from . import x\n"
    )
    assert sorted(imported_modules(source)) == [
        ".",
        "src.data",
        "src.nn",
        "src.utils.config",
        "torch",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    part = part_of(path)
    modules = imported_modules(path.read_text())
    assert "." not in modules, "imports are absolute"
    ours = {name.split(".")[1] for name in modules if name.startswith("src.")}
    folders = {part_of(p) for p in SOURCES} - {"entry points"}
    if part == "entry points":
        return
    assert ours & folders - {part} <= MAY_IMPORT[part]
    assert ours <= folders, "nothing imports from the entry points"


def test_every_folder_has_its_place():
    assert {part_of(path) for path in SOURCES} - {"entry points"} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_only_tests_and_scripts_may_use(path):
    tops = {name.partition(".")[0] for name in imported_modules(path.read_text())}
    assert not tops & {"tests", "scripts", "pytest", "jaxtyping", "beartype", "hypothesis"}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # their workers start fast
        ("src.utils.errors", ["torch", "lightning", "hydra"]),
        ("src.data.parsing", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.matching", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.space_groups", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.survey", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.duplicates", ["torch", "lightning"]),
    ],
)
def test_light_imports(module, absent):
    code = f"import sys, {module}; print([n for n in {absent} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
