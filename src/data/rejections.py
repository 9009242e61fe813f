"""Group the reasons for rejecting crystals into kinds."""

import re

# Patterns for the reason, tried in this order.
KINDS = {
    "partial occupancy": "occupanc|not an ordered",
    "contradiction": (
        "_chemical_formula|_exptl_crystal|_cell_volume|listed, but|listed, which|not a group|"
        "is number|nothing decides|without positions|different (values|settings)|two lists|"
        r"more positions|magnetic and|by line 6|not a cell of|has no setting|F_000|"
        "_atom_type_number|as the file says|said to be|but the sites|SCALE"
    ),
    "unknown format": "not in a format|packed as|need not list",
    "unsupported symmetry": "modulated|magnetic|not understood|MTRIX|not those of the cell",
    "overlapping atoms": "closer than|share one position",
    "too many atoms": r"more than \d+( atoms)?$",
    "unknown element": "not an element|no element|which elements",
    "element out of range": "^atomic number",
    "damaged file": "^not valid CIF|POSCAR|XYZError|JSON|SHELX|readable PDB|^damaged",
    "unreadable symmetry": "symmetry|space group",
    "incomplete file": "empty CIF|is missing|not a number$|values for|type symbols",
    "no periodic cell": "not periodic",
    "impossible cell": "cell|lattice",
    "no atoms": "no atoms",
}


def kind_of(reason: str) -> str:
    """The kind of a reason, such as `partial occupancy`.

    If it is of no known kind, the reason itself, without numbers, quoted names and details.
    """
    for kind, pattern in KINDS.items():
        if re.search(pattern, reason):
            return kind
    words = re.sub(r"""'[^']*'|"[^"]*"|\S*\d\S*""", "", reason.split(":")[0]).split()
    return " ".join(words) or reason
