"""Command lines as people type them, for Hydra."""

import re
from collections.abc import Sequence

BARE_LIST = r"^(compositions|num_atoms)=([^'\"\[].*,.*)$"


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Arguments in the form that Hydra needs.

    A bare list, as in `compositions=NaCl,SrTiO3`, gets brackets: Hydra would take it for a sweep.
    `conditions.NAME=VALUE` is allowed to add a field, since each model has its own conditions.
    """
    listed = [re.sub(BARE_LIST, r"\1=[\2]", argument) for argument in arguments]
    return [re.sub(r"^conditions\.", "++conditions.", argument) for argument in listed]
