"""Fuzz the readers with damaged files: `python scripts/fuzz.py {cif,csv,checkpoint} --num 10000`.

A reader must accept or reject each file within a second. It must reject a file with its own error
class, and read an accepted file like an independent reader (pymatgen, Python's csv). Each input is
made from real files and depends only on its number and the seed. It is tried in a separate process,
which it may crash.
"""

import argparse
import csv
import io
import json
import math
import random
import re
import resource
import signal
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gemmi
import numpy as np
from pebble import ProcessExpired, ProcessPool
from rich.console import Console
from rich.progress import track
from rich.table import Table

from src.utils.threads import limit_spinning

limit_spinning()  # before torch is loaded

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 1.0  # time limit per input, seconds
PATIENCE = 30.0  # seconds after which a process that misses the limit is killed
MEMORY = 12 * 2**30  # limit of the address space in bytes, to protect the machine

MAX_REASONS = 20  # reasons shown per verdict

FAULTS = ("error", "hang", "crash", "disagreed")


class Outcome(NamedTuple):
    """The result for an input: a verdict, and the kind of reason."""

    verdict: str
    reason: str = ""


# Inputs


def mutate_text(rng: random.Random, text: str, others: Sequence[str]) -> str:
    """Damage a text in one to four places, as accidents or adversaries would."""
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        text = rng.choice(TEXT_DAMAGES)(rng, text, others)
    return text


def _bytes(rng: random.Random, text: str, others: Sequence[str]) -> str:
    i = rng.randrange(len(text) + 1)
    new = rng.choice(["\x00", "'", '"', ";", "#", "\n", "\r", " ", "\t", "_", "é", "９", "-", "$"])
    return text[:i] + new + text[i + rng.randint(0, 1) :]


def _cut(rng: random.Random, text: str, others: Sequence[str]) -> str:
    i = rng.randrange(len(text) + 1)
    return text[:i] if rng.random() < 0.2 else text[:i] + text[i + rng.randint(1, 30) :]


def _lines(rng: random.Random, text: str, others: Sequence[str]) -> str:
    lines = text.split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    how = rng.randrange(4)
    if how == 0:
        del lines[i]
    elif how == 1:
        lines.insert(j, lines[i])
    elif how == 2:
        lines[i], lines[j] = lines[j], lines[i]
    else:
        lines.insert(j, rng.choice(rng.choice(others).split("\n")))
    return "\n".join(lines)


def _number(rng: random.Random, text: str, others: Sequence[str]) -> str:
    found = list(re.finditer(r"-?\d+\.?\d*", text))
    if not found:
        return text
    where = rng.choice(found)
    new = rng.choice(
        ["nan", "inf", "-1", "0", "1", "1e309", "1e-300", "1e5", "?", ".", "0.5", "1/3", "0.3333",
         "0.25(3)", "1(", "+.5", "1e", "0x10", "1_0", "1,5", "-0.0", "180", "90", "60", "0.999",
         str(rng.random()), str(rng.uniform(-3, 40)), where.group() + rng.choice("0159e.-(")]
    )  # fmt: skip
    return text[: where.start()] + new + text[where.end() :]


def _token(rng: random.Random, text: str, others: Sequence[str]) -> str:
    found = list(re.finditer(r"\S+", text))
    if not found:
        return text
    where = rng.choice(found)
    new = rng.choice(
        ["X", "D", "Va", "Wat", "Fe3+", "O2-", "Uuo", "CL", "h", "loop_", "data_x", "save_", "?",
         "_atom_site_occupancy", "'P 1'", "'F m -3 m'", "'x, y'", "'-x,-y,-z'", "'x,y,z+1/2'", "",
         where.group().upper(), where.group().lower(), f"'{where.group()}'",
         rng.choice(rng.choice(others).split() or [""])]
    )  # fmt: skip
    return text[: where.start()] + new + text[where.end() :]


TEXT_DAMAGES = (_bytes, _cut, *3 * [_lines], *6 * [_number], *2 * [_token])


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Change random bytes, remove or duplicate pieces, or truncate the file."""
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        i, n = rng.randrange(len(damaged) + 1), rng.randint(1, 16)
        how = rng.randrange(5)
        if how == 0:
            damaged[i : i + n] = b""
        elif how == 1:
            damaged[i:i] = damaged[i : i + n]
        elif how == 2 and rng.random() < 0.1:
            del damaged[i:]
        else:
            damaged[i : i + 1] = bytes([rng.randrange(256)])
    return bytes(damaged)


def mutate_archive(rng: random.Random, content: bytes) -> bytes:
    """Damage the pickle within a checkpoint, with correct checksums of the archive."""
    new = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(new, "w") as archive:
        for name in old.namelist():
            member = old.read(name)
            archive.writestr(name, mutate_bytes(rng, member) if "data.pkl" in name else member)
    return new.getvalue()


def mutate_content(rng: random.Random, content: bytes) -> bytes:
    """Replace or remove one value in a checkpoint of plain types."""
    import torch

    checkpoint = node = torch.load(io.BytesIO(content), weights_only=True)
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inner = node[key]
        if not (isinstance(inner, (dict, list)) and inner) or rng.random() < 0.1:
            break
        node = inner
    if rng.random() < 0.1:
        del node[key]
    else:
        nested: list = []
        for _ in range(100):
            nested = [nested]
        node[key] = rng.choice(
            [None, True, -1, 0, 3, 10**9, 2**70, 0.5, -1.5, math.inf, math.nan, "", "é",
             {}, [], nested, [1, None], {1: 2}, "os.system", "src.commands.train.train",
             {"_target_": "os.system"}, torch.zeros(0), torch.ones(3, 3),
             torch.ones(1).expand(10**6, 10**6), torch.zeros(8, 8, dtype=torch.int8).to_sparse()]
        )  # fmt: skip
    new = io.BytesIO()
    torch.save(checkpoint, new)
    return new.getvalue()


# Readers


def try_cif(text: str) -> Outcome:
    """Compare `read_cif` and `check_crystal` with pymatgen's `CifParser`."""
    from src.data.cif import CrystalError, check_crystal, niggli_reduce, read_cif

    with time_limit():
        try:
            crystal = read_cif(text, niggli=False)
            check_crystal(crystal)
            reduced = niggli_reduce(crystal)
        except CrystalError as error:
            return Outcome("rejected", _class_of(error))
    volume = np.linalg.det(crystal.lattice)
    if not np.isclose(np.linalg.det(reduced.lattice), volume, rtol=1e-6):
        return Outcome("disagreed", "the Niggli cell has a different volume")
    return compare_with_pymatgen(text, crystal)


def compare_with_pymatgen(text: str, crystal) -> Outcome:
    """Check that pymatgen reads the same lattice and the same atoms in the same places."""
    from pymatgen.io.cif import CifParser

    try:
        with time_limit(10):
            parser = CifParser.from_str(text, occupancy_tolerance=1.0)
            structure = parser.parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:
        return Outcome("accepted, not by pymatgen", _class_of(error))
    if not structure.is_ordered:
        return Outcome("disagreed", "pymatgen: not ordered")
    if len(structure) != crystal.num_atoms:
        return _explain_other_number(text, structure, " ".join(vars(parser)["warnings"]))
    if not np.allclose(structure.lattice.matrix, crystal.lattice, rtol=1e-4, atol=1e-3):
        return Outcome("disagreed", "other lattice")
    theirs = np.array([getattr(specie, "Z", 0) for specie in structure.species])
    if sorted(theirs) != sorted(crystal.atom_types):
        return Outcome("disagreed", "other elements")
    offsets = crystal.frac_coords[:, None] - structure.frac_coords
    offsets -= np.rint(offsets)
    distances = np.linalg.norm(offsets @ crystal.lattice, axis=-1)
    distances[crystal.atom_types[:, None] != theirs] = np.inf
    # pymatgen rounds 0.3333 to 1/3; apart from that, each atom must have a counterpart
    if max(distances.min(0).max(), distances.min(1).max()) > 1e-3 * structure.lattice.abc[0] + 0.02:
        return Outcome("disagreed", "other coordinates")
    return Outcome("accepted")


def _explain_other_number(text: str, structure, warned: str) -> Outcome:
    """Decide whether a number of atoms different from pymatgen's is right for the file."""
    if "Defaulting to P1" in warned:
        return Outcome("accepted, not by pymatgen", "it reads an unknown space group as P1")
    if not structure.is_valid(tol=0.05):
        return Outcome("accepted, not by pymatgen", "it keeps overlapping images of an atom")
    block = next(b for b in gemmi.cif.read_string(text) if b.find_values("_atom_site_fract_x"))
    operations = list(block.find_values("_symmetry_equiv_pos_as_xyz"))
    if operations and "x,y,z" not in [op.strip("'\"").replace(" ", "") for op in operations]:
        return Outcome("accepted, not by pymatgen", "it does not add the identity operation")
    if len(block.find_values("_atom_site_label")) < len(block.find_values("_atom_site_fract_x")):
        return Outcome("accepted, not by pymatgen", "it counts labels, and some are missing")
    if set(block.find_values("_atom_site_occupancy")) & {".", "?"}:
        # 1 by the definition of the CIF core dictionary
        return Outcome("accepted, not by pymatgen", "it drops sites with the default occupancy")
    return Outcome("disagreed", "other number of atoms")


def try_csv(content: bytes) -> Outcome:
    """Compare `CsvReader` with Python's csv module."""
    from src.data.readers import CsvReader, DataError

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        path.write_bytes(content)
        with time_limit():
            try:
                found = [record.cif for record in CsvReader(path, ["energy"])]
            except DataError as error:
                return Outcome("rejected", _class_of(error, path))
    try:
        rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        return Outcome("accepted, not by csv", _class_of(error))
    expected = {row.get("cif") or "" for row in rows}
    for text in found:
        if text not in expected and _is_crystal(text):
            return Outcome("disagreed", "a crystal that csv does not find")
    return Outcome("accepted")


def _is_crystal(text: str) -> bool:
    from src.data.cif import CrystalError, read_cif

    try:
        return bool(read_cif(text).num_atoms)
    except CrystalError:
        return False


def try_checkpoint(content: bytes) -> Outcome:
    """Try `VAEModule.load_from_checkpoint` and `import_chemeleon2`; loaded modules must work."""
    import torch

    from src.data import CrystalBatch
    from src.utils.checkpoints import CheckpointError
    from src.vae_module import VAEModule
    from src.vae_module.import_chemeleon2 import import_chemeleon2

    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vae.ckpt"
        path.write_bytes(content)
        for load in (VAEModule.load_from_checkpoint, import_chemeleon2):
            try:
                with time_limit():
                    vae = load(path)
                    vae.sample(CrystalBatch.for_sampling(torch.tensor([2]), torch.tensor([8, 8])))
                outcomes.append(Outcome("accepted", load.__name__))
            except CheckpointError as error:
                outcomes.append(Outcome("rejected", _class_of(error, path)))
    return max(outcomes, key=lambda outcome: outcome.verdict == "accepted")


def _class_of(error: Exception, path: Path | None = None) -> str:
    """The error message without the parts that depend on the input."""
    message = " ".join(str(error).replace(str(path), "FILE").split())
    message = re.sub(r"data:[\d:()]*( in \S+:)?|'[^']*'|\"[^\"]*\"|`[^`]*`", "...", message)
    message = re.sub(r"occupancy \S+:", "occupancy ...:", message)
    message = re.sub(r"\b_\w+", "_tag", message)
    message = re.sub(r"(?<= is )\S+, not", "..., not", message)
    message = re.sub(r"[-+]?\d[\w.+-]*", "N", message)
    return message[:70] or type(error).__name__


# The run


@dataclass(frozen=True)
class Target:
    """A reader to test: its original files, how to damage them, and how to judge the result."""

    originals: Callable[[Path], list]
    make: Callable[[random.Random, list], str | bytes]
    judge: Callable[..., Outcome]


def read_cifs(data_dir: Path) -> list[str]:
    """CIFs of some crystals in a data folder, and versions of some of them with symmetry."""
    from pymatgen.core import Structure
    from pymatgen.io.cif import CifWriter

    from src.data.splits import find_readers

    found = find_readers(data_dir)
    reader = next(iter(found.values())) if isinstance(found, dict) else found
    texts = [record.cif for record in reader]
    texts = random.Random(0).sample(texts, min(len(texts), 200))
    symmetric = []
    for text in texts[:40]:
        structure = Structure.from_str(text, fmt="cif")
        symmetric.append(str(CifWriter(structure, symprec=0.01)))
        # only the name of the space group, without operations
        symmetric.append(
            re.sub(r"loop_\n _symmetry_equiv.*?(?=loop_)", "", symmetric[-1], flags=re.S)
        )
    return texts + 2 * symmetric


def read_tables(data_dir: Path) -> list[bytes]:
    """CSV tables with three of these crystals each."""
    texts = read_cifs(data_dir)
    tables = []
    for start in range(0, len(texts) - 2, 3):
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["material_id", "energy", "cif"])
        for i, text in enumerate(texts[start : start + 3]):
            writer.writerow([f"mp-{start + i}", 0.5 * i, text])
        tables.append(file.getvalue().encode())
    return tables


def read_checkpoints(data_dir: Path) -> list[bytes]:
    """A small checkpoint of this project, and all checkpoints below a folder."""
    import torch

    from src.utils.checkpoints import save_checkpoint
    from src.vae_module import VAEModule
    from src.vae_module.decoders.transformer import TransformerDecoder
    from src.vae_module.encoders.transformer import TransformerEncoder

    torch.set_num_threads(1)
    sizes: dict[str, Any] = {"d_model": 8, "nhead": 2, "num_layers": 1, "dim_feedforward": 8}
    vae = VAEModule(TransformerEncoder(**sizes), TransformerDecoder(**sizes))
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(vae, Path(folder) / "vae.ckpt")
        paths = [Path(folder) / "vae.ckpt", *sorted(data_dir.rglob("*.ckpt"))]
        return [path.read_bytes() for path in paths]


def make_table(rng: random.Random, tables: list) -> bytes:
    """Damage a table as bytes or as text."""
    table = rng.choice(tables)
    if rng.random() < 0.5:
        return mutate_bytes(rng, table)
    others = ["a,b\n", '"x', "mp-1,0.5,cif", table.decode()]
    return mutate_text(rng, table.decode(), others).encode()


def make_checkpoint(rng: random.Random, checkpoints: list) -> bytes:
    """Damage a value in our own checkpoint, or the file or pickle of any checkpoint."""
    how = rng.random()
    if how < 0.5:
        return mutate_content(rng, checkpoints[0])
    content = rng.choice(checkpoints)
    return mutate_bytes(rng, content) if how < 0.6 else mutate_archive(rng, content)


TARGETS = {
    "cif": Target(read_cifs, lambda rng, all: mutate_text(rng, rng.choice(all), all), try_cif),
    "csv": Target(read_tables, make_table, try_csv),
    "checkpoint": Target(read_checkpoints, make_checkpoint, try_checkpoint),
}


class TimeUp(Exception):
    pass


@contextmanager
def time_limit(times: float = 1.0) -> Iterator[None]:
    """Raise `TimeUp` if the block takes more than `times` times `LIMIT`."""

    def stop(*_: object) -> None:
        raise TimeUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, times * LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Fuzzer:
    """Makes and tries the inputs of a target, by their number."""

    def __init__(self, target: str, data_dir: Path, seed: int = 0) -> None:
        self.target = TARGETS[target]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.originals = self.target.originals(data_dir)
        self.seed = seed

    def make(self, index: int) -> str | bytes:
        return self.target.make(random.Random(f"{self.seed}/{index}"), self.originals)

    def __call__(self, index: int) -> Outcome:
        given = self.make(index)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return self.target.judge(given)
            except TimeUp:
                return Outcome("hang", f"more than {LIMIT} s")
            except Exception as error:
                return Outcome("error", f"{type(error).__name__}: {_class_of(error)}")


_fuzzer: Fuzzer


def _start(*args) -> None:
    global _fuzzer
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    _fuzzer = Fuzzer(*args)


def _try(index: int) -> Outcome:
    return _fuzzer(index)


def run(target: str, data_dir: Path, num: int, seed: int = 0) -> list[Outcome]:
    """Try inputs 0 to num - 1 in a process that is restarted after a crash."""
    outcomes = []
    with ProcessPool(1, initializer=_start, initargs=(target, data_dir, seed)) as pool:
        results = pool.map(_try, range(num), timeout=PATIENCE).result()
        for _ in track(range(num), f"Fuzzing {target}", transient=True):
            try:
                outcomes.append(next(results))
            except TimeoutError:
                outcomes.append(Outcome("hang", f"killed after {PATIENCE} s"))
            except ProcessExpired as error:
                outcomes.append(Outcome("crash", f"exit code {error.exitcode}"))
    return outcomes


def summarize(outcomes: Sequence[Outcome]) -> Table:
    """A table of the number of inputs per verdict and reason."""
    table = Table(title=f"{len(outcomes):,} inputs")
    table.add_column("verdict")
    table.add_column("reason")
    table.add_column("inputs", justify="right")
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    reasons = Counter(outcomes)
    for verdict, count in sorted(verdicts.items(), key=lambda item: (item[0] in FAULTS, item[0])):
        table.add_row(verdict, "", f"{count:,}", style="bold")
        of_verdict = [item for item in reasons.most_common() if item[0].verdict == verdict]
        for outcome, number in of_verdict[:MAX_REASONS]:
            if outcome.reason:
                table.add_row("", outcome.reason, f"{number:,}")
        if rest := sum(number for _, number in of_verdict[MAX_REASONS:]):
            table.add_row("", "others", f"{rest:,}")
    return table


def main(argv: list[str] | None = None) -> int:
    """Fuzz one reader; return 1 if it failed, hung, crashed or disagreed, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--num", type=int, default=10_000, help="number of inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "data" / "prototypes", help="original files"
    )
    parser.add_argument("--show", type=int, help="print the input of this number and its verdict")
    parser.add_argument("--json", type=Path, help="write all verdicts to this file")
    args = parser.parse_args(argv)
    if args.show is not None:
        fuzzer = Fuzzer(args.target, args.data_dir, args.seed)
        given = fuzzer.make(args.show)
        sys.stdout.buffer.write(given.encode() if isinstance(given, str) else given)
        print(f"\n{fuzzer(args.show)}", file=sys.stderr)
        return 0
    outcomes = run(args.target, args.data_dir, args.num, args.seed)
    Console().print(summarize(outcomes))
    if args.json:
        args.json.write_text(json.dumps(outcomes, allow_nan=False))
    return int(any(outcome.verdict in FAULTS for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
