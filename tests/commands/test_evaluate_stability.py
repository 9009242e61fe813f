"""Judging a set of crystals, by a potential of ASE's, in this process."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from ase.build import bulk
from hydra import compose, initialize_config_dir
from pymatgen.core import Structure

from src.commands.evaluate_stability import evaluate_stability
from src.data.structures import read_structures, to_crystal, to_structure, write_structures
from src.metrics.generation.stability import workers
from src.utils.errors import UserError
from src.utils.output import OutputError

ROOT = Path(__file__).resolve().parents[2]


def alloy(symbols: str, size: float = 3.8) -> Structure:
    """Four atoms on the sites of fcc."""
    cell = bulk("Cu", "fcc", a=size, cubic=True)
    cell.symbols = symbols
    return to_structure(to_crystal(cell))


def shaken(structure: Structure, size: float) -> Structure:
    copied = structure.copy()
    copied.translate_sites([0], [size, -size, size], frac_coords=False)
    return copied


@pytest.fixture
def files(tmp_path):
    """Generated crystals: two good, one that EMT does not know, one clash, one unreadable file."""
    generated = tmp_path / "generated"
    crystals = {
        "a.cif": shaken(alloy("Cu3Au"), 0.05),
        "b.cif": alloy("Ni4", 3.5),
        "c.cif": alloy("W4"),
        "d.cif": Structure(alloy("Al4").lattice, ["Al", "Al"], [[0, 0, 0], [0.05, 0, 0]]),
    }
    for name, structure in crystals.items():
        write_structures(generated / name, [structure], [Path(name).stem])
    (generated / "e.cif").write_text("data_e\nloop_\n")
    known = {"train.extxyz": ("Cu4", "Au4", "Cu2Au2"), "test.extxyz": ("Ni4", "Al4")}
    for name, formulas in known.items():
        structures = [alloy(formula) for formula in formulas]
        write_structures(tmp_path / "data" / name, structures, list(formulas))
    return tmp_path


def judge_files(files: Path, *overrides: str) -> dict:
    given = [] if any(o.startswith("merge=") for o in overrides) else [f"input={files}/generated"]
    fixed = [
        "potential=ase.calculators.emt.EMT", "num_workers=0", f"cache_dir={files}/cache",
        f"output={files}/out",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return evaluate_stability(compose("eval_stability", overrides=given + fixed + [*overrides]))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def counting(monkeypatch) -> list:
    """The jobs that are run from now on."""
    run, jobs = workers._run, []
    monkeypatch.setattr(workers, "_run", lambda job, *rest: jobs.append(job) or run(job, *rest))
    return jobs


def test_all_crystals_count(files, caplog):
    metrics = judge_files(files)
    assert (metrics["num_crystals"], metrics["num_failed_emt_as_generated"]) == (5, 3)
    assert math.isinf(metrics["largest_force_emt_as_generated"]["0.9"])
    rows = pd.read_csv(files / "out" / "per_crystal.csv", index_col="id", keep_default_na=False)
    assert [row["id"] for row in lines(files / "out")] == ["e.cif", "a", "b", "c", "d"]
    assert list(rows.index) == ["a", "b", "c", "d", "e.cif"]
    for name, reason in {
        "c": "No EMT-potential for W",
        "d": "closer than",
        "e.cif": "cannot be",
    }.items():
        assert reason in rows.loc[name, "reason"]
        assert f"Failed: {name}" in caplog.text
    assert not any("hull" in name or "stable" in name for name in metrics)


def test_going_on_and_relaxing(files, monkeypatch):
    judge_files(files)
    jobs = counting(monkeypatch)
    before = lines(files / "out")
    path = files / "out" / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in before if row["id"] != "b") + '{"in')
    metrics = judge_files(files, "relax=true", "fmax=0.1")
    assert [job.relaxation is not None for job in jobs] == [False, True, True]
    assert metrics["num_failed_emt_relaxed"] == 3
    assert metrics["converged_emt_relaxed"] == metrics["still_matches_emt_relaxed"] == 2 / 5
    low, high = metrics["converged_emt_relaxed_interval"]
    assert low < 2 / 5 < high
    assert metrics["energy_gained_emt_relaxed"]["0.1"] > 0
    assert 0.02 < metrics["rmsd_emt_relaxed"]["0.9"] < 0.2
    relaxed = {
        item.id: item.structure for item in read_structures(files / "out" / "relaxed.extxyz")[0]
    }
    assert relaxed["b"].lattice.a == pytest.approx(3.49, abs=0.02)  # of EMT
    # with the same settings, nothing is left to do; without relaxing, what is there is shown
    jobs.clear()
    assert judge_files(files, "relax=true", "fmax=0.1") == metrics
    assert judge_files(files) == metrics
    assert not jobs
    for changed in ("fmax=0.01", "symmetrize=0.1", "num_crystals=3"):
        with pytest.raises(OutputError, match="other settings"):
            judge_files(files, "relax=true", "fmax=0.1", changed)
    assert judge_files(files, "symmetrize=0.1", "overwrite=true")["relaxation"] is None


def test_shards_are_as_one_run(files):
    settings = ["relax=true", "symmetrize=0.2", "max_steps=3"]
    whole = judge_files(files, *settings)
    for number in (1, 2):
        part = judge_files(files, *settings, f"shard={number}/2", f"output={files}/part")
        assert part["num_crystals"] == number + 1
    folders = f"[{files}/part_2_of_2,{files}/part_1_of_2]"
    merged = judge_files(files, f"merge={folders}", f"output={files}/merged")
    assert merged == whole
    assert merged["num_gained_symmetry"] == 1  # Cu3Au
    assert 0.05 < merged["displacement_median"] == merged["displacement_largest"] < 0.1
    for name in ("per_crystal.csv", "relaxed.extxyz"):
        assert (files / "merged" / name).read_text() == (files / "out" / name).read_text()
    with pytest.raises(UserError, match="merge all shards"):
        judge_files(files, f"merge=[{files}/part_1_of_2]", f"output={files}/half")


def test_the_hull(files, monkeypatch):
    jobs = counting(monkeypatch)
    metrics = judge_files(files, f"reference={files}/data", "reference_split=train")
    # four crystals, and Cu, Au and CuAu for Cu3Au; of Ni nothing is known
    assert len(jobs) == 4 + 3
    assert metrics["hull"]["missing_elements"] == ["Ni"]
    assert metrics["hull"]["num_entries"] == 3
    assert metrics["unknown_hull_emt_as_generated"] == 1 / 5
    rows = pd.read_csv(files / "out" / "per_crystal.csv", index_col="id")
    energy = {row["id"]: row["energy"] for row in lines(files / "out") if "energy" in row}
    (cache,) = (files / "cache").iterdir()
    cached = [json.loads(line) for line in cache.read_text().splitlines()]
    copper, _, half = (row["energy"] for row in cached)
    above = energy["a"] - (copper + half) / 2
    assert rows.loc["a", "e_above_hull"] == pytest.approx(above)
    assert metrics["stable_0.0_emt_as_generated"] == (1 / 5 if above <= 0 else 0)
    # with the whole reference, only nickel is new
    jobs.clear()
    metrics = judge_files(files, f"reference={files}/data")
    assert len(jobs) == 1
    assert metrics["unknown_hull_emt_as_generated"] == 0
    # and with simple structures, nothing needs a reference
    metrics = judge_files(files, "elements=simple", "max_steps=1")
    assert metrics["hull"]["simple_elements"] == ["Au", "Cu", "Ni"]
    assert metrics["unknown_hull_emt_as_generated"] == 0


def test_an_own_phase_diagram_and_sun(files):
    judge_files(files)
    energy = {row["id"]: row["energy"] for row in lines(files / "out") if "energy" in row}
    table = files / "pd.csv"
    table.write_text(f"formula,energy_per_atom\nNi,{energy['b'] - 0.05}\nCu,9\nAu,9\n")
    judged = files / "judged"
    judged.mkdir()
    (judged / "per_crystal.csv").write_text(
        "id,unique,novel\na,True,True\nb,True,True\nc,True,True\nd,,\n"
    )
    metrics = judge_files(files, f"phase_diagram={table}", f"judged={judged}")
    assert metrics["stable_0.0_emt_as_generated"] == metrics["sun_0.0_emt_as_generated"] == 1 / 5
    assert metrics["metastable_0.1_emt_as_generated"] == 2 / 5
    low, high = metrics["metastable_0.1_emt_as_generated_interval"]
    assert 0 <= low < 2 / 5 < high <= 1
    shares = ("stable_0.0", "metastable_0.1", "metastable_0.1_of_known", "implausible",
              "unknown_hull", "sun_0.0", "msun_0.1")  # fmt: skip
    assert {f"{name}_emt_as_generated_interval" for name in shares} <= set(metrics)
    assert metrics["implausible_emt_as_generated"] == 1 / 5  # Cu3Au, by 9 eV/atom
    (judged / "per_crystal.csv").write_text(
        "id,unique,novel\na,True,False\nb,True,True\nx,,\nd,,\n"
    )
    with pytest.raises(UserError, match="row 3 is of x, not of c"):
        judge_files(files, f"phase_diagram={table}", f"judged={judged}")
    (judged / "per_crystal.csv").write_text(
        "id,unique,novel\na,True,False\nb,True,True\nc,,\nd,,\n"
    )
    metrics = judge_files(files, f"phase_diagram={table}", f"judged={judged}")
    assert metrics["sun_0.0_emt_as_generated"] == 0
    assert metrics["msun_0.1_emt_as_generated"] == 1 / 5


def test_noise(files):
    for name in ("one", "two"):
        judge_files(files, "noise=0.3", f"output={files}/{name}")
    one, two = (lines(files / name) for name in ("one", "two"))
    assert one == two
    forces = {row["id"]: row["force"] for row in one if "force" in row}
    assert min(forces.values()) > 1


def test_samples_that_could_not_be_written(files):
    folder = files / "generated"
    write_structures(folder / "samples.extxyz", [alloy("Ni4")], ["sample-0"])
    rows = [
        {"id": "sample-0", "written": True, "reason": None},
        {"id": "sample-1", "written": False, "reason": "not finite"},
    ]
    (folder / "samples.json").write_text(json.dumps({"samples": rows}))
    metrics = judge_files(files)
    assert (metrics["num_crystals"], metrics["num_failed_emt_as_generated"]) == (2, 1)
    (folder / "samples.json").write_text("{}")
    with pytest.raises(UserError, match=r"samples\.json cannot be read"):
        judge_files(files)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["input=null"], "set either input"),
        (["merge=[a]", "output=null"], "merge needs output"),
        (["reference=a"], "no file or folder reference=a"),
        (["reference=a", "phase_diagram=b"], "set either reference or phase_diagram"),
        (["elements=all"], "elements must be null or simple"),
        (["noise=-1"], "noise must be positive"),
        (["num_workers=-1"], "at least 0"),
        (["potential=chgnot"], "neither chgnet nor sevenn"),
        (["input=nowhere"], "nowhere"),
        (["phase_diagram=pd.csv"], r"no file pd\.csv"),
        (["judged=nowhere"], "set reference or phase_diagram as well"),
        (["judged=nowhere", "elements=simple"], r"nowhere has no per_crystal\.csv"),
    ],
)
def test_settings_that_cannot_be_used(files, overrides, message, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=message):
        judge_files(files, *overrides)


def test_other_folders_are_left_alone(files):
    with pytest.raises(OutputError, match="something else"):
        judge_files(files, f"output={files}/data", "overwrite=true")
