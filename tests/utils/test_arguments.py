"""Command lines as people type them."""

from src.utils.arguments import for_hydra


def test_bare_lists_and_conditions():
    typed = ["sample.py", "num_samples=3", "compositions=NaCl,4*SrTiO3", "num_atoms=[2,4]",
             "conditions.density=5.2", "compositions='a,b'"]  # fmt: skip
    assert for_hydra(typed) == [
        "sample.py", "num_samples=3", "compositions=[NaCl,4*SrTiO3]", "num_atoms=[2,4]",
        "++conditions.density=5.2", "compositions='a,b'",
    ]  # fmt: skip


def test_formulas_that_hydra_would_take_for_something_else():
    typed = ["compositions=InF,NaN,NO,On,Yb,1e5", "compositions=[Ca(OH)2, NaCl]",
             "compositions=InF", "compositions=null", "++compositions=my file=1.txt"]  # fmt: skip
    assert for_hydra(typed) == [
        "compositions=['InF','NaN','NO','On',Yb,'1e5']", "compositions=['Ca(OH)2',NaCl]",
        "compositions='InF'", "compositions=null", "++compositions='my file=1.txt'",
    ]  # fmt: skip


def test_the_path_of_a_file_may_have_commas(tmp_path):
    path = tmp_path / "a,b.txt"
    path.touch()
    assert for_hydra([f"compositions={path}"]) == [f"compositions='{path}'"]
