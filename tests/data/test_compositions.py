import pytest
from omegaconf import OmegaConf

from src.data.compositions import parse_composition, read_compositions
from src.utils.errors import UserError

ODD = ["InF", "NaN", "NO", "Yb", "Ca(OH)2"]


def test_formulas_that_look_like_something_else(tmp_path):
    """In YAML, text files and CSV; `tests/utils/test_arguments.py` has the command line."""
    from_yaml = OmegaConf.create(f"given: [{', '.join(ODD)}]").given
    (tmp_path / "a.txt").write_text("\n".join(ODD))
    (tmp_path / "b.csv").write_text("n,Formula\n" + "".join(f"1,{f}\n" for f in ODD))
    (tmp_path / "c.csv").write_text("\n".join(ODD))
    for given in (ODD, from_yaml, ",".join(ODD), *map(str, sorted(tmp_path.iterdir()))):
        assert read_compositions(given) == ODD
    assert parse_composition("InF").tolist() == [49, 9]
    assert parse_composition("NaN").tolist() == [11, 7]
    assert parse_composition("2*NO").tolist() == [7, 7, 8, 8]


@pytest.mark.parametrize("given", ["[On]", "[1e5]", "[12]"])
def test_what_yaml_takes_for_something_that_is_no_formula(given):
    with pytest.raises(UserError, match="put formulas in quotes"):
        read_compositions(OmegaConf.create(f"given: {given}").given)


@pytest.mark.parametrize(
    "formula", ["On", "1e5", "NaCl 3", "3 NaCl", "nan", "Fe0.5", "X2", "", "Na1e5", "Na0Cl"]
)
def test_what_is_no_formula(formula):
    with pytest.raises(UserError, match="composition"):
        parse_composition(formula)


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    with pytest.raises(UserError, match="no column 'formula'; its columns are"):
        read_compositions(str(tmp_path / "a.csv"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not a text file"):
        read_compositions(str(tmp_path / "b.txt"))
