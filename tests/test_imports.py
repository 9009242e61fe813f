"""Imports go in one direction, between the folders of `src` and between the modules in each."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from scripts.draw_imports import circle_in, import_graph, imported_modules
from src.utils.moved_modules import MOVED

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# each folder may import from those before it in this order, and from these alone
MAY_IMPORT = {
    "utils": set(),
    "data": {"utils"},
    "nn": {"utils"},
    "metrics": {"utils", "data"},
    "base": {"utils", "data", "nn", "metrics"},
    "vae_module": {"utils", "data", "nn", "metrics", "base"},
    "ldm_module": {"utils", "data", "nn", "metrics", "base", "vae_module"},
    "report": {"utils", "data", "metrics"},
    "inspection": {"utils", "data", "metrics", "report"},
    "callbacks": {"utils", "data", "nn", "metrics", "base", "vae_module", "report"},
    "commands": {
        "utils", "data", "nn", "metrics", "base", "vae_module", "ldm_module", "report",
        "inspection", "callbacks",
    },
}  # fmt: skip


def folder_of(path: Path) -> str:
    """`data` for src/data/cif.py; `entry points` for modules directly in src."""
    parts = path.relative_to(ROOT / "src").parts
    return parts[0] if len(parts) > 1 else "entry points"


def test_the_reader_of_imports():
    source = (
        "import torch\nfrom src.data import cif\nfrom src import nn\n"
        "def f():\n    import src.utils.config\n    from . import x\n"
    )
    assert sorted(imported_modules(source)) == [
        ".",
        "src",
        "src.data",
        "src.data.cif",
        "src.nn",
        "src.utils.config",
        "torch",
    ]


def test_the_finder_of_circles():
    assert circle_in({"a": ["b"], "b": ["c"], "c": []}) == []
    assert sorted(set(circle_in({"a": ["b"], "b": ["c"], "c": ["a"]}))) == ["a", "b", "c"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_flow_one_way(path):
    folder = folder_of(path)
    modules = imported_modules(path.read_text())
    assert "." not in modules, "imports are absolute"
    ours = {name.split(".")[1] for name in modules if name.startswith("src.")}
    if folder != "entry points":
        assert ours <= MAY_IMPORT[folder] | {folder}


def test_nothing_is_imported_in_a_circle():
    graph = import_graph(ROOT / "src")
    assert (
        "src.vae_module.vae_module"
        in graph["src.commands.encode"] | graph["src.vae_module.datasets"]
    )
    assert circle_in(graph) == []


def test_the_folders_are_in_an_order():
    """Each folder may import only folders that `MAY_IMPORT` lists before it."""
    before: set[str] = set()
    for folder, allowed in MAY_IMPORT.items():
        assert allowed <= before, folder
        before.add(folder)


def test_every_folder_has_its_place():
    assert {folder_of(path) for path in SOURCES} - {"entry points"} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCES if folder_of(path) == "entry points" and path.name != "__init__.py"],
    ids=lambda path: path.name,
)
def test_entry_points_hold_no_logic(path):
    """They compose a config and call the command."""
    assert len(path.read_text().splitlines()) <= 35
    ours = {name for name in imported_modules(path.read_text()) if name.startswith("src.")}
    assert {name.split(".")[1] for name in ours} <= {"commands", "utils"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_only_tests_and_scripts_may_use(path):
    tops = {name.partition(".")[0] for name in imported_modules(path.read_text())}
    assert not tops & {"tests", "scripts", "pytest", "jaxtyping", "beartype", "hypothesis"}


PLAIN = (
    "losses.py", "distribution.py", "latent_noise.py", "cell_init.py", "flow.py", "solver.py",
    "conditions.py",
)  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_networks_and_losses_are_plain_pytorch(path):
    """They can be used without Lightning and Hydra."""
    plain = folder_of(path) == "nn" or path.parent.name in ("encoders", "decoders", "denoisers")
    if plain or path.name in PLAIN:
        tops = {name.partition(".")[0] for name in imported_modules(path.read_text())}
        assert not tops & {"lightning", "hydra", "omegaconf"}


@pytest.mark.parametrize("former", MOVED)
def test_a_former_name_is_the_same_module(former):
    module = import_module(former)
    assert module is import_module(MOVED[former])
    assert module.__name__ == module.__spec__.name == MOVED[former]
    assert not (ROOT / f"{former.replace('.', '/')}.py").exists()


def test_names_of_former_modules_that_are_packages_now():
    from src.commands import load_data, load_vae, run_folder
    from src.metrics.generation import coverage, evaluate_generated
    from src.metrics.reconstruction import ReconstructionErrors

    for found in (load_data, load_vae, run_folder, coverage, evaluate_generated):
        assert callable(found)
    assert ReconstructionErrors.__name__ == "ReconstructionErrors"
    with pytest.raises(ImportError, match="no_such_name"):
        from src.commands import no_such_name  # noqa: F401


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # settings are checked before torch is loaded
        ("src.utils.entry", ["torch", "lightning", "pymatgen"]),
        # their workers start fast
        ("src.utils.errors", ["torch", "lightning", "hydra"]),
        ("src.data.parsing", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.matching", ["torch", "lightning", "pymatgen"]),
        ("src.metrics.structure_matching.calls", ["torch", "lightning", "pymatgen", "numba"]),
        ("src.metrics.space_groups", ["torch", "lightning", "pymatgen"]),
        ("src.inspection.analysis", ["torch", "lightning", "pymatgen"]),
        ("src.inspection.duplicates", ["torch", "lightning"]),
    ],
)
def test_light_imports(module, absent):
    code = f"import sys, {module}; print([n for n in {absent} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_is_said_on_import():
    """torch_geometric uses parts of torch that a new torch warns of."""
    done = subprocess.run(
        [sys.executable, "-c", "from src.data import DataModule"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout + done.stderr == ""
