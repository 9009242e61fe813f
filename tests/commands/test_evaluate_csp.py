import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from pymatgen.core import Lattice, Structure

from src.commands.evaluate_csp import evaluate_csp
from src.data.cif import write_cif
from src.data.readers import DataError
from src.data.structures import to_crystal, write_structures
from src.metrics.matching import CDVAE
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], CENTERED)
LIF = Structure(Lattice.cubic(2.6), ["Li", "F"], CENTERED)
IRON = Structure(Lattice.cubic(2.9), ["Fe", "Fe"], CENTERED)
LINE = Structure(Lattice.orthorhombic(2.6, 7.0, 7.0), ["Li", "F"], [[0, 0, 0], [0.5, 0, 0]])


@pytest.fixture
def files(tmp_path) -> Path:
    """Two rounds of samples for CsCl, LiF and Fe, of which two were not written."""
    named = {"sample-000000": CSCL, "sample-000002": IRON, "sample-000004": LIF}
    named["sample-000005"] = IRON
    write_structures(tmp_path / "samples" / "samples.extxyz", list(named.values()), list(named))
    write_structures(tmp_path / "samples" / "cifs" / "sample-000000.cif", [CSCL], ["sample-000000"])
    formulas = ("Cs1 Cl1", "Li1 F1", "Fe2") * 2
    rows = [{"id": f"sample-{i:06d}", "formula": f} for i, f in enumerate(formulas)]
    (tmp_path / "samples" / "samples.json").write_text(json.dumps({"samples": rows}))
    (tmp_path / "data").mkdir()
    for split, crystals in {"train": {"a": LIF}, "test": {"a": CSCL, "b": LIF, "c": LINE}}.items():
        cifs = [write_cif(to_crystal(structure), name) for name, structure in crystals.items()]
        table = pd.DataFrame({"material_id": list(crystals), "cif": cifs})
        table.to_csv(tmp_path / "data" / f"{split}.csv", index=False)
    return tmp_path


def make_config(files: Path, *overrides: str):
    given = [f"input={files / 'samples'}", f"reference={files / 'data'}", "num_workers=0"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("eval_csp", overrides=[*given, *overrides])


def test_a_folder_of_samples(files, caplog, capsys):
    metrics = evaluate_csp(make_config(files))
    folder = files / "eval_csp_samples"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "num_samples": 6, "num_references": 3, "num_unassigned": 2, "num_not_built": 2,
        "k": 2, "match_at_1": 1 / 3, "metre": 2 / 3, "num_skipped": 0, "polymorphs": "each",
        "input": str(files / "samples" / "samples.extxyz"),
        "reference": str(files / "data" / "test.csv"),
    }  # fmt: skip
    expected |= {"tolerances": {"stol": 0.5, "ltol": 0.3, "angle_tol": 10.0}}
    assert {name: metrics[name] for name in expected} == expected
    rows = pd.read_csv(folder / "per_crystal.csv", index_col="id", keep_default_na=False)
    assert rows.num_samples.tolist() == [2, 1, 1]
    assert rows.first_sample.tolist() == ["sample-000000", "sample-000001", "sample-000004"]
    assert rows.match_at_1.tolist() == [True, False, False]
    assert rows.reason.tolist() == ["", *["no match within the tolerances"] * 2]
    assert list(pd.read_csv(folder / "skipped.csv").columns) == ["file", "reason"]
    assert "2 samples have the composition of no reference crystal" in caplog.text
    printed = capsys.readouterr().out
    assert "33.33 ±" in printed
    assert "by number of atoms" in printed


def test_a_file_alone_has_no_samples_that_were_not_written(files):
    write_structures(files / "mine.extxyz", [CSCL, LIF, LINE], ["x", "y", "z"])
    metrics = evaluate_csp(make_config(files, f"input={files / 'mine.extxyz'}", "k=1"))
    assert metrics["match_at_1"] == 1
    assert (metrics["num_not_built"], metrics["match_at_1_interval"]) == (0, [1, 1])
    assert (files / "eval_csp_mine" / "per_crystal.csv").is_file()


def test_parts_give_the_result_of_one_run(files):
    option = "polymorphs=once"
    whole = evaluate_csp(make_config(files, option, f"output={files / 'whole'}"))
    for number in (1, 2, 3):
        evaluate_csp(make_config(files, option, f"shard={number}/3"))
    folders = [files / f"eval_csp_samples_{number}_of_3" for number in (3, 1, 2)]
    merge = f"merge=[{','.join(map(str, folders))}]"
    assert evaluate_csp(make_config(files, option, merge)) == whole
    names = ("whole", "eval_csp_samples")
    texts = [(files / name / "per_crystal.csv").read_text() for name in names]
    assert texts[0] == texts[1]
    with pytest.raises(UserError, match="computed with another k: merge"):
        evaluate_csp(make_config(files, option, merge, "k=1", f"output={files / 'other'}"))
    alone = f"merge=[{folders[0]}]"
    with pytest.raises(UserError, match=r"merge lacks the parts \[1, 2\] of 3"):
        evaluate_csp(make_config(files, option, alone, f"output={files / 'other'}"))
    with pytest.raises(UserError, match="set either shard"):
        evaluate_csp(make_config(files, merge, "shard=1/3"))


def test_errors(files):
    with pytest.raises(UserError, match="matcher must be fast or pymatgen, not ours"):
        evaluate_csp(make_config(files, "matcher=ours"))
    with pytest.raises(DataError, match="nowhere"):
        evaluate_csp(make_config(files, f"reference={files / 'nowhere'}"))
    (files / "samples" / "samples.json").write_text('{"samples": [{}]}')
    with pytest.raises(DataError, match=r"samples\.json does not list samples as sample_ldm does"):
        evaluate_csp(make_config(files))
    assert not (files / "eval_csp_samples").exists()


def test_the_config_has_the_tolerances_of_cdvae(files):
    tolerances = make_config(files).tolerances
    assert dict(tolerances) == {name: getattr(CDVAE, name) for name in CDVAE.__slots__}
