"""Command lines as people type them."""

from src.utils.arguments import for_hydra


def test_bare_lists_and_conditions():
    typed = ["sample.py", "num_samples=3", "compositions=NaCl,4*SrTiO3", "num_atoms=[2,4]",
             "conditions.density=5.2", "compositions='a,b'"]  # fmt: skip
    assert for_hydra(typed) == [
        "sample.py", "num_samples=3", "compositions=[NaCl,4*SrTiO3]", "num_atoms=[2,4]",
        "++conditions.density=5.2", "compositions='a,b'",
    ]  # fmt: skip
