"""The code and commands in the README and docs work, and the site builds without warnings."""

import argparse
import ast
import html
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ase.db
import pandas as pd
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from pymatgen.core import Structure

import src.vae_module.encoders
from src.data.cif import read_cif
from src.data.structures import to_atoms
from src.utils.arguments import for_hydra
from src.utils.checkpoints import save_checkpoint
from src.vae_module import VAEModule
from src.vae_module.decoders.transformer import TransformerDecoder
from src.vae_module.encoders.transformer import TransformerEncoder
from tests.crystals import rock_salt
from tests.ldm_module.conftest import make_ldm

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SIZES = {"d_model": 16, "nhead": 4, "num_layers": 1, "dim_feedforward": 512}  # as SMALL makes them
SETS = ("prototypes", "mp_20", "perov_5", "carbon_24", "mpts_52", "alex_mp_20")

FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[str | None, str]]:
    """The title, if any, and the text of each code block on a page."""
    found = FENCE.findall(page.read_text())
    return [(title or None, text) for kind, title, text in found if kind == language]


def commands(page: Path) -> list[str]:
    """The lines of the page's bash blocks, with continuation lines joined and without comments."""
    text = "\n".join(text for _, text in blocks(page, "bash")).replace("\\\n", " ")
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [" ".join(line.split()) for line in lines if line]


def parametrize_pages(language: str) -> pytest.MarkDecorator:
    pages = [page for page in PAGES if blocks(page, language)]
    return pytest.mark.parametrize("page", pages, ids=name_of)


def test_code_blocks_are_of_languages_that_are_checked():
    kinds = {kind for page in PAGES for kind, _, _ in FENCE.findall(page.read_text())}
    assert kinds <= {"python", "bash", "yaml"}
    for page in PAGES:  # and none escapes the pattern
        assert page.read_text().count("```") == 2 * len(FENCE.findall(page.read_text())), page


# What commands and code of the pages find: small data in the places that they name


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder, with the paths that the examples use."""
    data, run = tmp_path / "data", tmp_path / "path" / "to"
    write_crystals(data / "prototypes")
    for other in (*(data / name for name in SETS[1:]), run / "mp_20"):
        shutil.copytree(data / "prototypes", other)
    write_ones_own(run / "mine", tmp_path / "mine.db")
    (run / "cifs").mkdir()
    rocksalt().to(str(run / "cifs" / "rocksalt.cif"))
    save_checkpoint(make_vae(), run / "best.ckpt")
    save_checkpoint(make_vae(), data / "prototypes" / "vae.ckpt")
    for name, predicted in (("ldm", True), ("ldm_csp", False)):
        save_checkpoint(make_ldm(predicted), run / f"{name}.ckpt")
    content = {"_target_": "src.data.DataModule", "data_dir": str(data / "prototypes")}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": content}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROJECT_ROOT", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_crystals(folder: Path, num: int = 40) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "val", "test"):
        rows = pd.read_csv(ROOT / "data" / "prototypes" / f"{split}.csv", nrows=num)
        rows.to_csv(folder / f"{split}.csv", index=False)


def write_ones_own(folder: Path, database: Path, num: int = 40) -> None:
    folder.mkdir()
    rows = pd.read_csv(ROOT / "data" / "prototypes" / "test.csv", nrows=num)
    with ase.db.connect(database) as db:
        for i, cif in enumerate(rows["cif"]):
            (folder / f"{i}.cif").write_text(cif)
            atoms = to_atoms(read_cif(cif))
            atoms.calc = SinglePointCalculator(atoms, energy=-1.0 * i)
            db.write(atoms)


def rocksalt() -> Structure:
    return rock_salt(5.64, "Na", "Cl")


def make_vae() -> VAEModule:
    """An untrained VAE whose cells are roughly cubes of 3 Å per atom."""
    torch.manual_seed(0)
    vae = VAEModule(TransformerEncoder(**SIZES), TransformerDecoder(**SIZES))
    with torch.no_grad():
        vae.decoder.lattice_head.weight *= 0.1
        vae.decoder.lattice_head.bias.copy_(torch.tensor([3.0] * 3 + [math.pi / 2] * 3))
    vae.training_set = {"num_crystals": 4, "num_atoms": {"2": 3, "6": 1}, "elements": {"8": 12}}
    return vae.eval()


def write_titled(page: Path, folder: Path) -> None:
    """Write the blocks whose title is a path to that path below `folder`."""
    for language in ("python", "yaml"):
        for title, text in blocks(page, language):
            if title:
                (folder / title).parent.mkdir(parents=True, exist_ok=True)
                (folder / title).write_text(text)


# Python


@parametrize_pages("python")
def test_python_runs(page, place, monkeypatch):
    """The blocks of a page share variables; those with a title are files of the project."""
    torch.manual_seed(0)
    write_titled(page, place)
    encoders = src.vae_module.encoders
    overlay = str(place / "src" / "vae_module" / "encoders")
    monkeypatch.setattr(encoders, "__path__", [*encoders.__path__, overlay])
    names = {"structures": [rocksalt()]}  # of which the README speaks as one's own
    for title, code in blocks(page, "python"):
        if title is None:
            exec(compile(code, name_of(page), "exec"), names)
    if page.name == "README.md":
        assert len(names["reconstruction"].to_structure()[0]) == 8
    for module in [name for name in sys.modules if name.startswith("src.vae_module.encoders.m")]:
        del sys.modules[module]


def test_an_encoder_takes_fifty_lines():
    page = ROOT / "docs" / "your_own_encoder.md"
    ((_, code),) = [each for each in blocks(page, "python") if each[0]]
    assert len(code.splitlines()) <= 50


# Commands: each line is checked by the first of these that knows it, and one must


def compose_with(name: str, arguments: list[str], folder: Path) -> None:
    """Compose a config with the overrides of a command line; for a sweep, with the first values."""
    overrides = [argument for argument in arguments if "=" in argument]
    flags = {argument for argument in arguments if "=" not in argument}
    assert flags <= {"-m", "--cfg", "job", "--info", "defaults-tree"}, flags
    first = []
    for override in OverridesParser.create().parse_overrides(overrides):
        is_sweep = override.is_sweep_override()
        value = next(override.sweep_string_iterator()) if is_sweep else None
        first.append(f"{override.get_key_element()}={value}" if is_sweep else override.input_line)
    if (folder / "configs").is_dir():  # what the page adds
        first.append(f"hydra.searchpath=[file://{folder / 'configs'}]")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        compose(name, overrides=first, return_hydra_config=True)


def check_make(arguments: list[str], folder: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    variables = dict(a.split("=", 1) for a in arguments if "=" in a)
    (target,) = [a for a in arguments if "=" not in a]
    assert target in targets
    assert set(variables) <= {"EXPERIMENT", "ARGS", "PYTHON"}
    if target == "train":
        experiment = variables.get("EXPERIMENT", "prototypes/vae_dng")
        more = shlex.split(variables.get("ARGS", ""))
        compose_with("train_vae", [f"experiment={experiment}", *more], folder)


def check_python(arguments: list[str], folder: Path) -> None:
    """Compose the config of a Hydra command; let other commands parse their arguments."""
    script = ROOT / arguments[0]
    assert script.is_file(), script
    if config := re.search(r'config_name="(\w+)"', script.read_text()):
        compose_with(config[1], for_hydra(arguments[1:]), folder)
    else:
        parse_only(script, arguments[1:])


def parse_only(script: Path, arguments: list[str]) -> None:
    class Parsed(Exception):
        pass

    def parse(self, argv=None, namespace=None):
        _, unknown = original(self, argv, namespace)
        assert not unknown, unknown
        raise Parsed

    # what all other ways to parse call, so that no script goes on to run
    original = argparse.ArgumentParser.parse_known_args
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(script.parent)  # as where Python runs a file
        with pytest.raises(Parsed):
            runpy.run_path(str(script), run_name="__main__")


def check_sbatch(arguments: list[str], folder: Path) -> None:
    at = next(i for i, argument in enumerate(arguments) if argument.endswith(".sbatch"))
    assert all(option.startswith("--") for option in arguments[:at])
    assert (ROOT / arguments[at]).is_file()
    compose_with("train_vae", arguments[at + 1 :], folder)


def check_wandb_sweep(arguments: list[str], folder: Path) -> None:
    sweep = yaml.safe_load((ROOT / arguments[0]).read_text())
    assert (ROOT / sweep["program"]).is_file()
    fixed = [part for part in sweep["command"] if "=" in part]
    ranges = sweep["parameters"].items()
    first = {key: r["values"][0] if "values" in r else r["min"] for key, r in ranges}
    own = [f"{key}={value}" for key, value in first.items()]
    compose_with("train_vae", [*fixed, *own], folder)


def check_nothing(arguments: list[str], folder: Path) -> None:
    """For commands of other programs, and commands with nothing to check."""


CHECKS: dict[str, Callable[[list[str], Path], None]] = {
    r"make": check_make,
    r"(OMP_NUM_THREADS=\d+ )?(\.venv/bin/)?python(?= (src|scripts)/)": check_python,
    r"(OVERRIDES=\S+ )?sbatch": check_sbatch,
    r"wandb sweep": check_wandb_sweep,
    r"wandb agent [\w/]+$": check_nothing,
    r"head -n \d+ [\w/.]+$": check_nothing,
    r"\.venv/bin/pre-commit install$": check_nothing,
}


@parametrize_pages("bash")
def test_commands_are_ones_that_there_are(page, tmp_path):
    write_titled(page, tmp_path)
    for line in commands(page):
        found = [(re.match(p, line), check) for p, check in CHECKS.items() if re.match(p, line)]
        assert found, f"nothing here knows how to check: {line}"
        match, check = found[0]
        check(shlex.split(line[match.end() :]), tmp_path)


@pytest.mark.parametrize(
    "line",
    ["make tea", "python src/train_vae.py trainer.max_epoch=1", "python src/no.py",
     "python scripts/benchmark.py tea", "sbatch scripts/slurm/train.sbatch experiment=no/vae_dng",
     "python src/train_vae.py -m vae_module.latent_dims=2,4"],
)  # fmt: skip
def test_commands_that_there_are_not_are_found(line, tmp_path):
    match, check = next((re.match(p, line), c) for p, c in CHECKS.items() if re.match(p, line))
    with pytest.raises((Exception, SystemExit)):
        check(shlex.split(line[match.end() :]), tmp_path)


# Commands of these are run as well, with what makes them small. Not those that want what a test
# has not: several processes, a cluster, a run to continue from.
SMALL = {
    "train_vae": [
        "++trainer.limit_train_batches=1", "++trainer.limit_val_batches=1", "trainer=cpu",
        "trainer.max_epochs=1", "eval.num_crystals=2", "eval.num_workers=0",
        "callbacks.match_rate.every_n_epochs=0", "vae_module.encoder.d_model=16",
        "vae_module.encoder.num_layers=1", "vae_module.decoder.d_model=16",
        "vae_module.decoder.num_layers=1", "callbacks.progress_bar=null",
    ],
    "eval_vae": ["num_crystals=3", "num_probed=2", "num_workers=1", "overwrite=true"],
    "sample_vae": ["num_samples=3", "overwrite=true"],
    "reconstruct": ["num_workers=1", "overwrite=true"],
    "encode_vae": ["overwrite=true"],
}  # fmt: skip
NOT_RUN = re.compile(
    r"trainer=ddp|init_from=|my data/set|sweeps/lr|launcher=|imported|debug=|CHECKPOINT|MP_20"
    r"|PEROV_5|CARBON_24"
)

RUNNER = """
import importlib, json, sys
import src.vae_module.encoders as encoders
encoders.__path__.append("src/vae_module/encoders")  # what the page adds
for name, arguments in json.loads(sys.argv[1]):
    sys.argv = [name, *arguments]
    try:
        importlib.import_module(f"src.{name}").main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"{name} {' '.join(arguments)}: {end.code}")
"""


def runnable(page: Path) -> list[tuple[str, list[str]]]:
    """Names and arguments of the commands on a page that can be run in a test."""
    found = []
    for line in commands(page):
        match = re.match(r"(?:\.venv/bin/)?python src/(\w+)\.py", line)
        if match and match[1] in SMALL and not NOT_RUN.search(line):
            arguments = [*shlex.split(line[match.end() :]), *SMALL[match[1]]]
            found.append((match[1], arguments))
    return found


def run(lines: list[tuple[str, list[str]]], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    arguments = [sys.executable, "-c", RUNNER, json.dumps(lines)]
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=550
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_commands_of_the_quickstart_run(place):
    lines = runnable(ROOT / "docs" / "index.md")
    run(lines, place)
    assert [name for name, _ in lines] == ["eval_vae", "reconstruct", "encode_vae", "sample_vae"]
    assert json.loads((place / "path/to/eval_test/metrics.json").read_text())["split"] == "test"
    assert (place / "path/to/eval_test/report.html").is_file()
    assert (place / "rebuilt" / "changes.csv").is_file()
    assert (place / "latents" / "test.safetensors").is_file()
    assert len(list((place / "samples").rglob("*.cif"))) == 3


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p)], ids=name_of)
def test_commands_run(page, place):
    write_titled(page, place)
    lines = runnable(page)
    if (place / "configs").is_dir():
        lines = [(n, [*a, f"hydra.searchpath=[file://{place / 'configs'}]"]) for n, a in lines]
    run(lines, place)


# What the text names is there


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    for path in re.findall(r"`((?:src|configs|data|scripts|tests)/[\w./]+)`", prose(page)):
        # NAME stands for any, and known sets come from elsewhere
        if not re.search(r"\b[A-Z]+\b", path) and path.split("/")[1] not in SETS[1:]:
            assert (ROOT / path).exists(), path
    for name in re.findall(r"experiment=([a-z][\w/]+)", page.read_text()):
        assert (CONFIGS / "experiment" / f"{name}.yaml").is_file(), name


def test_functions_that_are_named_are_in_their_files():
    """`path`, `name` and, in a table, `path` | `name`."""
    named = [
        (page, path, name)
        for page in PAGES
        for path, name in re.findall(
            r"`((?:src|scripts|tests)/[\w/]+\.py)`(?:, | \| )`([\w.]+)`", prose(page)
        )
    ]
    assert sum(page.name == "where.md" for page, _, _ in named) > 35
    for page, path, name in named:
        body = ast.parse((ROOT / path).read_text()).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{name_of(page)}: {path} has no {name}"
            body = getattr(found[0], "body", [])


ROOTS = (
    "callbacks", "data", "eval", "hparams_search", "hydra", "ldm_module", "paths", "trainer",
    "vae_module",
)  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_keys_that_are_named_are_fields(page, config_reference):
    known = set(re.findall(r"<tr><td><code>(.*?)</code>", config_reference.reference()))
    known = {name.replace("<wbr>", "") for name in known}
    known |= {name.rsplit(".", i)[0] for name in known for i in range(1, name.count(".") + 1)}
    text = prose(page)
    if page.name == "chemeleon2.md":  # the first column has another program's
        text = re.sub(r"^\| .*? \|", "", text, flags=re.MULTILINE)
    for key in re.findall(rf"`((?:{'|'.join(ROOTS)})(?:\.\w+)+)(?:=[^`]*)?`", text):
        # hydra's own fields, and the arguments of Lightning's Trainer, are not all in a file
        assert key in known or key in ("hydra.run.dir", "hydra.launcher.n_jobs"), key


def test_addresses_look_like_addresses():
    for page in PAGES:
        for address in re.findall(r"\]\((\w+:[^)]*)\)", page.read_text()):
            assert re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/[^\s]*)?", address), address


# The reference of the configuration


@pytest.fixture(scope="module")
def config_reference():
    names = runpy.run_path(str(ROOT / "scripts" / "config_reference.py"), run_name="reference")
    return argparse.Namespace(**names)


def leaves(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict) or not node:
        return [prefix.removesuffix(".")]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{prefix}{key}.")]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_field_and_comment_is_in_the_reference(path, config_reference):
    group = path.relative_to(CONFIGS).parent.as_posix()
    folder, group = (CONFIGS / "experiment", "experiment") if "experiment" in group else (
        path.parent, "" if group == "." else group
    )  # fmt: skip
    section = html.unescape(config_reference._section(path, group, folder))
    section = re.sub(r"</?(code|wbr)>", "", section)
    content = yaml.safe_load(path.read_text()) or {}
    content.pop("defaults", None)
    package = re.search(r"^# @package (\S+)", path.read_text(), re.MULTILINE)
    prefix = package[1] if package else group.replace("/", ".")
    prefix = "" if prefix in ("_global_", "") else f"{prefix}."
    rows = dict(re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", section))
    for leaf in leaves(content) if content else []:
        name = prefix + leaf
        while name not in rows and "." in name:  # {a: 1} on one line is one row
            name, _, last = name.rpartition(".")
            assert last in rows.get(name, last), leaf
        assert name in rows, leaf
    for comment in re.findall(r"(?:^|\s)# (.*)$", path.read_text(), flags=re.MULTILINE):
        if "@package" not in comment:
            assert comment.strip().replace("`", "") in section, comment
    assert section in html.unescape(re.sub(r"</?(code|wbr)>", "", config_reference.reference()))


def test_a_config_is_read_as_it_stands(config_reference, tmp_path):
    (tmp_path / "part.yaml").write_text(
        "# What it is\n# for.\ndefaults:\n  - base\n  - override /data: mp_20 # a set\n  - _self_\n"
        "\na: ??? # needed, # and more\n# above\n# two lines\nb: [1, 2]\n"
        "c: # holds\n  d: 'x # y' # a text\n  e:\n    f: ${..d}\nlast: {g: 1}\n# at the end\n"
    )
    config = config_reference.read_config(tmp_path / "part.yaml", "group.")
    assert config.about == "What it is for. at the end"
    assert config.bases == ["base"]
    rows = [(row.name, row.value, row.comment) for row in config.rows]
    assert rows == [
        ("data", "mp_20", "a set"),
        ("group.a", "???", "needed, # and more"),
        ("group.b", "[1, 2]", "above two lines"),
        ("group.c", "", "holds"),
        ("group.c.d", "'x # y'", "a text"),
        ("group.c.e.f", "${..d}", ""),
        ("group.last", "{g: 1}", ""),
    ]


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_navigation_lists_every_page(config_reference):
    def listed(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [page for child in children for page in listed(child)]

    nav = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(nav) == sorted([*pages, "configuration.md"])


def test_pages_load_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        loaded = re.findall(
            r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"?([^\"\s>]+)", text
        )
        assert loaded
        assert not [address for address in loaded if re.match(r"(\w+:)?//", address)], page
        assert "@import" not in text
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_equations_are_mathml(site):
    text = (site / "model.html").read_text()
    assert text.count("<math") > 20
    assert 'display="block"' in text
    assert "arithmatex" not in text
    assert not re.search(r"\\(frac|left|mathrm|sigma)\b", re.sub(r"<script.*?</script>", "", text))


def test_the_interface_is_shown(site):
    text = "".join(
        (site / "api" / f"{name}.html").read_text() for name in ("module", "data", "metrics")
    )
    for name in (
        "src.vae_module.VAEModule.encode", "src.vae_module.VAEModule.load_from_checkpoint",
        "src.vae_module.VAEModule.from_pretrained", "src.vae_module.VAEModule.save_pretrained",
        "src.vae_module.VAEModule.push_to_hub", "src.vae_module.sampling.sample_crystals",
        "src.vae_module.evaluation.evaluate_vae",
        "src.vae_module.DiagonalGaussianDistribution.kl", "src.data.DataModule",
        "src.data.schema.CrystalBatch.from_structures", "src.data.dataset.CrystalDataset.batch",
        "src.data.latents.LatentDataset.load", "src.data.cif.read_cif",
        "src.vae_module.encoders.transformer.TransformerEncoder",
        "src.vae_module.decoders.transformer.TransformerDecoder", "src.vae_module.losses.vae_loss",
        "src.metrics.matching.FastMatcher.match",
        "src.metrics.generation.evaluate.evaluate_generated",
        "src.metrics.generation.fingerprint_distances.coverage",
        "src.utils.schedules.WarmupCosine",
    ):  # fmt: skip
        assert f'id="{name}"' in text, name
    assert "configure_optimizers" not in text  # Lightning's, not ours to call
