"""Why crystals are left out, in few words."""

import re

# What reasons have in common, in the order in which they are tried. Any other is a kind of its own.
KINDS = {
    "partial occupancy": "occupanc|not an ordered",
    "overlapping atoms": "closer than|share one position",
    "too many atoms": r"more than \d+( atoms)?$",
    "unknown element": "no element|which elements",
    "element out of range": "^atomic number",
    "damaged file": "^not valid CIF",
    "unreadable symmetry": "symmetry|space group",
    "incomplete file": "empty CIF|is missing|not a number$|values for|type symbols",
    "impossible cell": "cell|lattice|not periodic",
    "no atoms": "no atoms",
}


def kind_of(reason: str) -> str:
    """What reasons that differ in numbers and names have in common: `partial occupancy`."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, reason):
            return kind
    words = re.sub(r"""'[^']*'|"[^"]*"|\S*\d\S*""", "", reason.split(":")[0]).split()
    return " ".join(words) or reason
