"""Command lines as people type them."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.utils.arguments import for_hydra


def test_bare_lists_and_conditions():
    typed = ["sample.py", "num_samples=3", "compositions=NaCl,4*SrTiO3", "num_atoms=[2,4]",
             "conditions.density=5.2", "compositions='a,b'"]  # fmt: skip
    assert for_hydra(typed) == [
        "sample.py", "num_samples=3", "compositions=[NaCl,4*SrTiO3]", "num_atoms=[2,4]",
        "++conditions.density=5.2", "compositions='a,b'",
    ]  # fmt: skip


PATHS = [
    "a b", "a=b", "lr=0.1,wd=0/best.ckpt", "what?.csv", "it's", "it's\\", "back\\", "[x]", "{a}",
    "a(1)",
    "2024", "1e5", "true", "~/data", "a#1;b&c!", "Å/ü", 'a "x"',
    "trail ", "${paths.data_dir}/a=b",
]  # fmt: skip


@pytest.mark.parametrize(
    "key",
    ["data.data_dir", "ckpt_path", "output", "hydra.run.dir", "known", "phase_diagram", "judged"],
)
def test_every_path_arrives_as_it_is_typed(key):
    for path in PATHS:
        (argument,) = for_hydra([f"{key}={path}"])
        override = OverridesParser.create().parse_override(argument)
        assert (override.key_or_group, override.value()) == (key, path)


def test_paths_that_are_right_already_stay():
    given = ["output='a=b'", 'input="a,b"', "ckpt_path=null", "reference=data/mp_20"]
    assert for_hydra(given) == given
    assert for_hydra(["-m", "data.data_dir=a,b"]) == ["-m", "data.data_dir=a,b"]  # a sweep


def test_lists_of_paths():
    for given in ("inputs=[a b,x=1?,'c,d']", "inputs=a b,x=1?,'c,d'"):
        (argument,) = for_hydra([given])
        override = OverridesParser.create().parse_override(argument)
        assert [str(each) for each in override.value()] == ["a b", "x=1?", "c,d"]
    assert for_hydra(["merge=null", "merge=[]"]) == ["merge=null", "merge=[]"]


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
