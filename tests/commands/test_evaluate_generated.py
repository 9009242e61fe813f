import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from pymatgen.core import Lattice, Structure

pytest.importorskip("matminer")

from src.commands.evaluate_generated import evaluate_files
from src.data.cif import write_cif
from src.data.readers import DataError
from src.data.structures import to_crystal, write_structures
from src.metrics.generation.evaluate import CUTOFFS
from src.metrics.matching import PYMATGEN
from src.utils.errors import UserError
from src.utils.output import OutputError

ROOT = Path(__file__).resolve().parents[2]
CENTERED = [[0, 0, 0], [0.5, 0.5, 0.5]]
CSCL = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], CENTERED)
LIF = Structure(Lattice.cubic(2.6), ["Li", "F"], CENTERED)
IRON = Structure(Lattice.cubic(2.9), ["Fe", "Fe"], CENTERED)
CLASH = Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.1, 0, 0]])


def write_table(path: Path, **crystals: Structure) -> None:
    cifs = [write_cif(to_crystal(structure), name) for name, structure in crystals.items()]
    pd.DataFrame({"material_id": list(crystals), "cif": cifs}).to_csv(path, index=False)


@pytest.fixture
def files(tmp_path):
    """A folder of generated crystals, and a data folder as the reference."""
    generated, data = tmp_path / "generated", tmp_path / "data"
    (generated / "more").mkdir(parents=True)
    data.mkdir()
    for name, structure in {"a.cif": CSCL, "b.vasp": LIF, "more/c.extxyz": CLASH}.items():
        write_structures(generated / name, [structure], [Path(name).stem])
    with zipfile.ZipFile(generated / "d.zip", "w") as archive:
        archive.writestr("again.cif", write_cif(to_crystal(CSCL * (1, 1, 2)), "again"))
    (generated / "damaged.cif").write_text("data_damaged\nloop_\n")
    write_table(data / "train.csv", known=LIF, other=IRON)
    write_table(data / "test.csv", iron=IRON, first=CSCL, second=LIF)
    return tmp_path


def make_config(files: Path, *overrides: str):
    given = [f"input={files / 'generated'}", f"reference={files / 'data'}", "num_workers=0"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("eval_generated", overrides=[*given, *overrides])


def test_a_folder(files, caplog):
    metrics = evaluate_files(make_config(files, f"test_reference={files / 'data'}"))
    folder = files / "eval_generated"
    assert sorted(path.name for path in folder.iterdir()) == [
        "metrics.json",
        "per_crystal.csv",
        "skipped.csv",
    ]
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    expected = {
        "num_generated": 4,
        "num_skipped": 1,
        "num_reference": 2,
        "num_test_reference": 3,
        "valid_structure": 3 / 4,
        "valid_composition": 1.0,
        "unique": 2 / 3,
        "novel": 2 / 3,
        "valid_unique_and_novel": 1 / 4,
        "reference": str(files / "data" / "train.csv"),
        "test_reference": str(files / "data" / "test.csv"),
    }
    assert {name: metrics[name] for name in expected} == expected

    rows = pd.read_csv(folder / "per_crystal.csv", index_col="id", keep_default_na=False)
    assert rows.formula.tolist() == ["CsCl", "LiF", "CsCl", "CsCl"]
    assert rows.loc["d.zip/again", "num_atoms"] == 4
    assert rows.loc["d.zip/again", ["unique", "duplicate_of", "novel"]].tolist() == [
        "False", "a", "True"
    ]  # fmt: skip
    assert rows.loc["b", ["unique", "novel", "known_as"]].tolist() == ["True", "False", "known"]
    assert rows.loc["c", ["unique", "novel", "known_prototype"]].tolist() == [""] * 3
    assert rows.known_composition.tolist() == [False, True, False, False]
    assert rows.loc["a", "known_prototype"] == "True"  # as LiF
    assert "closer than 0.5 Å" in rows.loc["c", "reason"]

    skipped = pd.read_csv(folder / "skipped.csv")
    assert skipped.file.tolist() == ["damaged.cif"]
    assert "Skipped damaged.cif" in caplog.text


def test_a_table_and_a_subset_of_the_reference(files):
    write_table(files / "samples.csv", one=CSCL, two=IRON)
    source = files / "samples.csv"
    metrics = evaluate_files(make_config(files, f"input={source}", "max_test_reference=1"))
    assert (files / "eval_samples" / "metrics.json").is_file()
    assert metrics["num_reference"] == 2
    assert metrics["num_test_reference"] == 1
    assert metrics["novel"] == 0.5


def as_parquet(data: Path) -> None:
    for path in data.glob("*.csv"):
        pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
        path.unlink()


def as_folders(data: Path) -> None:
    for path in data.glob("*.csv"):
        path.with_suffix("").mkdir()
        for row in pd.read_csv(path).to_dict("records"):
            (path.with_suffix("") / f"{row['material_id']}.cif").write_text(row["cif"])
        path.unlink()


def as_cifs_with_splits_csv(data: Path) -> None:
    as_folders(data)
    with (data / "splits.csv").open("w") as file:
        file.write("id,file,split,group\n")
        for path in sorted(data.glob("*/*.cif")):
            name = f"{path.parent.name}-{path.stem}"
            file.write(f"{name},{name}.cif,{path.parent.name},\n")
            path.rename(data / f"{name}.cif")


@pytest.mark.parametrize("change", [as_parquet, as_folders, as_cifs_with_splits_csv])
def test_test_crystals_do_not_count_as_known(files, change, caplog):
    """CsCl is in test and not in train, whatever the format of the reference."""
    change(files / "data")
    metrics = evaluate_files(make_config(files))
    assert (metrics["num_reference"], metrics["num_test_reference"]) == (2, 3)
    assert metrics["novel"] == 2 / 3
    assert "contains no splits" not in caplog.text


def test_all_crystals_are_used_with_a_warning_without_splits(files, caplog):
    as_folders(files / "data")
    (files / "data" / "train").rename(files / "data" / "one")
    (files / "data" / "test").rename(files / "data" / "other")
    metrics = evaluate_files(make_config(files))
    assert (metrics["num_reference"], metrics["num_test_reference"]) == (5, 5)
    assert metrics["novel"] == 0
    warning = f"{files / 'data'} contains no splits: all its crystals are used"
    assert caplog.text.count(warning) == 1


def test_all_crystals_of_a_reference_on_request(files):
    (files / "data" / "train.csv").rename(files / "data" / "one.csv")
    with pytest.raises(DataError, match=r"data has no split 'train' \(it has test \(test\.csv\)\)"):
        evaluate_files(make_config(files))
    metrics = evaluate_files(make_config(files, "reference_split=null"))
    assert (metrics["num_reference"], metrics["num_test_reference"]) == (5, 3)


@pytest.mark.parametrize("key", ["reference", "test_reference", "scale_reference"])
def test_two_candidates_for_a_split(files, key):
    data = files / "other"
    data.mkdir()
    for split in ("train", "test"):
        write_table(data / f"{split}.csv", one=CSCL)
        write_table(data / f"{split}.csv.gz", one=LIF)
    with pytest.raises(DataError, match=r"other has 2 candidates .*: \w+\.csv and \w+\.csv\.gz"):
        evaluate_files(make_config(files, f"{key}={data}"))


def test_a_missing_test_split_is_an_error(files):
    (files / "data" / "test.csv").rename(files / "data" / "val.csv")
    with pytest.raises(DataError, match=r"no split 'test' .*these with test_reference_split"):
        evaluate_files(make_config(files))
    metrics = evaluate_files(make_config(files, "test_reference_split=val"))
    assert metrics["num_test_reference"] == 3


def test_the_split_file_of_a_run(files):
    data = files / "data"
    as_cifs_with_splits_csv(data)
    (data / "splits.csv").rename(files / "splits.csv")
    metrics = evaluate_files(make_config(files, f"split_file={files / 'splits.csv'}"))
    assert (metrics["num_reference"], metrics["num_test_reference"]) == (2, 3)
    assert metrics["reference"] == f"{data} (train of {files / 'splits.csv'})"
    assert metrics["test_reference"] == f"{data} (test of {files / 'splits.csv'})"


def test_the_scale_of_compositions(files):
    cutoffs = "cutoffs={structure: 10, composition: 200}"
    write_table(files / "scale.csv", alone=LIF)  # no spread, so that distances stay in raw units
    train = f"test_reference={files / 'data' / 'train.csv'}"
    own = evaluate_files(make_config(files, cutoffs, train))
    scale = f"scale_reference={files / 'scale.csv'}"
    raw = evaluate_files(make_config(files, cutoffs, train, scale, "overwrite=true"))
    assert own["cov_precision"] == 3 / 4  # all that are valid
    assert raw["cov_precision"] == 1 / 4  # LiF, which is in the reference
    assert own["scale_reference"].endswith("train.csv")
    assert raw["scale_reference"].endswith("scale.csv")


def test_results_are_not_overwritten(files):
    evaluate_files(make_config(files, f"output_dir={files / 'out'}"))
    with pytest.raises(OutputError, match="overwrite=true"):
        evaluate_files(make_config(files, f"output_dir={files / 'out'}"))
    with pytest.raises(OutputError, match="exists"):
        evaluate_files(make_config(files, f"output_dir={files / 'data'}", "overwrite=true"))
    assert (files / "data" / "train.csv").is_file()


@pytest.mark.parametrize("key", ["input", "reference", "test_reference"])
def test_nothing_to_read(files, key):
    (files / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(DataError, match=place):
            evaluate_files(make_config(files, f"{key}={files / place}"))
    assert not (files / "eval_generated").exists()


def test_the_files_of_sample_vae_count_once(files):
    folder = files / "samples"
    for name in ("samples.extxyz", "cifs/sample-000000.cif"):
        write_structures(folder / name, [CSCL], ["sample-000000"])
    metrics = evaluate_files(make_config(files, f"input={folder}"))
    assert (metrics["num_generated"], metrics["unique"], metrics["num_skipped"]) == (1, 1, 0)
    assert (files / "eval_samples" / "per_crystal.csv").is_file()


def test_other_files_next_to_those_of_sample_vae_are_ignored_with_a_warning(files, caplog):
    folder = files / "samples"
    for name in ("samples.extxyz", "cifs/sample-000000.cif"):
        write_structures(folder / name, [CSCL], ["sample-000000"])
    (folder / "samples.json").write_text("{}")
    evaluate_files(make_config(files, f"input={folder}"))
    assert "only samples.extxyz" not in caplog.text
    write_structures(folder / "relaxed.extxyz", [LIF], ["sample-000000"])
    evaluate_files(make_config(files, f"input={folder}", "overwrite=true"))
    warning = f"In {folder}, only samples.extxyz is evaluated; ignored: relaxed"
    assert warning in caplog.text


def test_a_missing_package_is_a_clear_error(files, monkeypatch):
    monkeypatch.delattr("src.metrics.generation.fingerprints", raising=False)
    monkeypatch.setitem(sys.modules, "src.metrics.generation.fingerprints", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[generation\]'"):
        evaluate_files(make_config(files))


def test_a_matcher_that_does_not_exist(files):
    with pytest.raises(UserError, match="matcher must be fast or pymatgen, not ours"):
        evaluate_files(make_config(files, "matcher=ours"))


def test_the_config_has_the_defaults_of_the_code():
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose("eval_generated")
    assert vars_of(CUTOFFS["mp_20"]) == dict(cfg.cutoffs)
    assert vars_of(PYMATGEN) == dict(cfg.tolerances)


def vars_of(settings) -> dict[str, float]:
    return {name: getattr(settings, name) for name in settings.__slots__}


def test_parts_give_the_result_of_one_run(files):
    whole = evaluate_files(make_config(files, f"output={files / 'whole'}"))
    for number in (1, 2):
        evaluate_files(make_config(files, f"shard={number}/2"))
    folders = ",".join(str(files / f"eval_generated_{number}_of_2") for number in (2, 1))
    assert evaluate_files(make_config(files, f"merge=[{folders}]")) == whole
    rows = [pd.read_csv(files / name / "per_crystal.csv") for name in ("whole", "eval_generated")]
    pd.testing.assert_frame_equal(*rows)
    with pytest.raises(UserError, match="set either shard"):
        evaluate_files(make_config(files, "merge=[]", "shard=1/2"))


def test_latents_are_compared_on_request(files, capsys):
    encoder = ROOT / "data" / "prototypes" / "vae.ckpt"
    options = ("fingerprints=false", "prototypes=false", f"encoder={encoder}", "device=cpu")
    metrics = evaluate_files(make_config(files, *options))
    assert metrics["encoder"] == str(encoder)
    assert metrics["latent_sample_size"] == 2  # the reference has no more
    assert 0 < metrics["latent_p_value"] <= 1
    assert metrics["latent_energy_distance_held_out"] >= 0
    assert "energy distance of latents" in capsys.readouterr().out
    with pytest.raises(UserError, match="encoder_size must be at least 1, not 0"):
        evaluate_files(make_config(files, *options, "encoder_size=0", f"output={files / 'o'}"))


def test_the_report_and_the_energies_in_it(files, caplog, monkeypatch):
    monkeypatch.setattr("src.report.judged.get_plotlyjs", lambda: "")
    stability = files / "stability_generated"
    stability.mkdir()
    (stability / "metrics.json").write_text('{"potential": "EMT (1)", "noise": null}')
    table = "id,e_above_hull\na,0.25\nb,\n{},2\nc,1\ndamaged.cif,\n"
    options = ("fingerprints=false", "prototypes=false", "report=true", "overwrite=true")
    (stability / "per_crystal.csv").write_text(table.format("d.zip/again"))
    evaluate_files(make_config(files, *options))
    page = (files / "eval_generated" / "report.html").read_text()
    assert "0.250 eV/atom above the hull" in page
    assert "as generated, by EMT (1), of stability_generated" in page
    (stability / "per_crystal.csv").write_text(table.format("other"))
    evaluate_files(make_config(files, *options))  # of other crystals: left out
    assert "eV/atom above the hull" not in (files / "eval_generated" / "report.html").read_text()
    assert "row 3 is of other, not of d.zip/again" in caplog.text
    with pytest.raises(UserError, match="row 3 is of other"):
        evaluate_files(make_config(files, *options, f"stability={stability}"))
    with pytest.raises(UserError, match="is for the report only: set report=true"):
        evaluate_files(make_config(files, f"stability={stability}"))


def test_samples_that_were_not_written_are_told(files, caplog):
    folder = files / "samples"
    write_structures(folder / "samples.extxyz", [CSCL], ["sample-0"])
    rows = [{"id": "sample-0", "written": True}, {"id": "sample-1", "written": False}]
    (folder / "samples.json").write_text(json.dumps({"samples": rows}))
    options = (f"input={folder}", "fingerprints=false", "prototypes=false")
    assert evaluate_files(make_config(files, *options))["num_not_written"] == 1
    assert "1 samples are listed in" in caplog.text


@pytest.mark.slow
def test_command(files):
    command = [sys.executable, str(ROOT / "src" / "eval_generated.py")]
    given = [f"input={files / 'generated'}", f"reference={files / 'data'}", "num_workers=1"]
    done = subprocess.run([*command, *given], cwd=files, capture_output=True, text=True, check=True)
    assert "66.67 ±" in done.stdout
    metrics = json.loads((files / "eval_generated" / "metrics.json").read_text())
    assert math.isclose(metrics["novel"], 2 / 3)
    again = subprocess.run([*command, *given], cwd=files, capture_output=True, text=True)
    assert again.returncode == 1
    assert "overwrite=true" in again.stdout + again.stderr
    assert "Traceback" not in again.stderr
