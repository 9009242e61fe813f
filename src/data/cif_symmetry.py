"""The symmetry that a CIF declares, and whether it is consistent.

A CIF can list its operations and name their group, in several ways at once. All of them must agree.
Where they leave several possibilities (two origins, or an incomplete list of operations), all are
returned, and the atoms decide (`src.data.cif`).
"""

import bisect
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import gemmi
import numpy as np

from src.data.cif_tags import Tags, normal_name
from src.data.crystal import CrystalError, lengths_and_cosines
from src.data.operations import (
    Operations,
    check_number,
    closure,
    fit_cell,
    from_gemmi,
    group_number,
    missing_product,
    parse_operations,
    product_of,
)

IDENTITY = parse_operations(("x,y,z",))

# gemmi truncates its messages, sometimes in the middle of a multibyte character.
_GEMMI_ERRORS = (RuntimeError, UnicodeDecodeError, ValueError)

# Suffixes of names: those of the International Tables after a colon, and those of old ICSD files:
# S for origin 1, Z for origin 2 (at a center), HR for hexagonal axes.
_SUFFIX = re.compile(
    r"(?P<base>.+?)(?:\s*:\s*(?P<code>[12]|[HRhr])"
    r"|\s*\(?[Oo]rigin(?:\s+[Cc]hoice)?\s*(?P<origin>[12])\)?"
    r"|(?:\s*[:_])?\s*O(?P<o>[12])|[\s:_]*(?P<icsd>HR|RS|[HRSZ]))",
    re.ASCII,
)
_NUMBER_IN_NAME = re.compile(r"\s*(?:#|\(\s*(?:[Nn]o\.?|#)?|[Nn]o\.?)\s*(\d{1,3})\s*\)?$", re.ASCII)
_TRIPLET = re.compile(r"[\s\d./+*-]*[xyz][^,]*(?:,[^,]*[xyz][^,]*){2}", re.ASCII)
# other tags that say what P1 would not, unless they have one of these values
_BEYOND_P1 = re.compile(r"bravais|centring|schoenflies|laue|point_group|patterson|sg_symbol|magn")
_WORDS_OF_P1 = (
    "p1", "p-1", "1", "-1", "1.1", "1.1.1", "ap", "p", "primitive", "c1", "c1.1", "c1^1", "c1_1",
)  # fmt: skip
_LAST_OF_SYSTEM = (2, 15, 74, 142, 167, 194, 230)
_SYSTEMS = (
    "triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic",
    "rhombohedral",
)  # fmt: skip
_HEXAGONAL = ("trigonal", "hexagonal", "rhombohedral")
_BNS = re.compile(r"(\d+)\.\d+", re.ASCII)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One way to understand the symmetry of a file.

    Attributes:
        name: what it is, for messages.
        operations: its operations.
    """

    name: str
    operations: Operations


@dataclass(frozen=True, slots=True, eq=False)
class Symmetry:
    """The symmetry of a file.

    Attributes:
        readings: the possible readings, at least one.
        conflict: why the file contradicts itself; empty if it does not. A reading may then be used
            only if other items of the file, such as the formula, confirm it and no other.
        excluded: those with the other origin, if the file lists no operations but gives the origin.
    """

    readings: list[Reading]
    conflict: str = ""
    excluded: Sequence[Reading] = ()


_P1 = Symmetry([Reading("P 1", IDENTITY)])


@dataclass(frozen=True, slots=True, eq=False)
class _Declared:
    """The groups that a name, number, code or Hall symbol allows, and how they were given.

    `has_setting` says whether the setting was given too, and not only the type of the group.
    """

    text: str
    groups: list[Reading]
    number: int | None
    has_setting: bool = False
    conflict: str = ""
    excluded: Sequence[Reading] = ()


def read_symmetry(tags: Tags, lattice: np.ndarray) -> Symmetry:
    """Find the symmetry operations of a data block.

    Args:
        tags: the items of the data block.
        lattice: (3, 3), Å, the cell that the operations have to fit.

    Raises:
        CrystalError: if the symmetry is unknown, that of a modulated crystal, or contradictory in
            a way that no other item can settle.
    """
    if (tag := tags.superspace_tag()) is not None:
        raise CrystalError(f"{tag}: modulated structures are not supported")
    listed = _listed_operations(tags)
    if listed is not None and len(listed) == 1 and _is_plain_p1(tags):
        return _beside_other_tags(_P1, tags, lattice)
    magnetic = _magnetic_operations(tags, lattice)
    if magnetic is not None:
        if listed is not None and listed.codes != magnetic.codes:
            raise CrystalError(
                f"{len(magnetic)} magnetic and {len(listed)} other symmetry operations are "
                "listed: they must agree"
            )
        return Symmetry([Reading("the magnetic operations", magnetic)])
    declared = _declared(tags, lattice, is_listed=listed is not None)
    if listed is not None:
        symmetry = _compare(listed, declared, lattice)
    elif declared is not None:
        if declared.conflict:
            raise CrystalError(declared.conflict)
        symmetry = Symmetry(declared.groups, excluded=declared.excluded)
    else:
        return _without_operations(tags)
    symmetry = _beside_other_tags(symmetry, tags, lattice)
    fitting = [r for r in symmetry.readings if fit_cell(r.operations, lattice)]
    if not fitting:
        raise CrystalError(f"{_cell_text(lattice)} is not a cell of {symmetry.readings[0].name}")
    return Symmetry(fitting, symmetry.conflict, symmetry.excluded)


def _without_operations(tags: Tags) -> Symmetry:
    """P1, unless the file has an item that says otherwise and is not understood."""
    if found := tags.symmetry_tags():
        if any("magn" in tag.lower() for tag in found):
            raise CrystalError(
                f"{found[0]}: magnetic symmetry without a list of operations is not supported"
            )
        conflict = f"the symmetry is given only by {', '.join(found)}, which is not understood"
        return Symmetry(_P1.readings, conflict)
    for tag, value in tags.texts():
        if _TRIPLET.fullmatch(value.lower()) or (len(value.split()) > 2 and _find(value)):
            return Symmetry(_P1.readings, f"{tag} seems to give the symmetry, but is not known")
    return _P1


def _beside_other_tags(symmetry: Symmetry, tags: Tags, lattice: np.ndarray) -> Symmetry:
    """The symmetry, with a conflict if other tags speak of another crystal system or lattice."""
    if symmetry.conflict or not {"symmetry", "magnetic number"} & tags.kinds.keys():
        return symmetry
    others = tags.values("symmetry") | tags.values("magnetic number")
    readings = symmetry.readings
    for tag, value in others.items():
        name, word = normal_name(tag), value.lower().strip()
        if name.endswith(("cell_setting", "crystal_system")):
            if word not in _SYSTEMS:
                continue
            found = [_system(each.operations, lattice) for each in readings]
            # trigonal crystals are said to be hexagonal, by their cell, and the reverse
            same = _HEXAGONAL if word in _HEXAGONAL else (word,)
            if not {*found} & {*same, None}:
                conflict = f"{tag} is {value}, but the symmetry operations are {found[0]}"
                return Symmetry(readings, conflict)
        elif all(len(each.operations) == 1 for each in readings):
            compact = re.sub(r"[\s'\"]", "", word)
            if _BEYOND_P1.search(name) and compact not in _WORDS_OF_P1:
                return Symmetry(readings, f"{tag} is {value}, but the only operation is x,y,z")
    return symmetry


def _system(operations: Operations, lattice: np.ndarray) -> str | None:
    """The crystal system of a group of operations; None if it is not known."""
    if len(operations) == 1:
        return "triclinic"
    number = group_number(operations, lattice)
    if number is None:
        return None
    return _SYSTEMS[bisect.bisect_left(_LAST_OF_SYSTEM, number)]


def _is_plain_p1(tags: Tags) -> bool:
    """Whether the names and numbers, if any, are those of P1, which is cheap to see."""
    if any(kind in tags.kinds for kind in ("setting", "magnetic operations")):
        return False
    return all(
        value.replace(" ", "") in ("P1", "1")
        for kind in ("name", "number", "hall")
        for value in tags.values(kind).values()
    )


def _listed_operations(tags: Tags) -> Operations | None:
    """The operations that the file lists; None if it lists none."""
    found: dict[str, Operations] = {}
    for tag, triplets in tags.columns("operations").items():
        check_number(len(triplets))
        found[tag] = parse_operations(tuple(triplets))
    for tag, triplets in tags.columns("generators").items():
        check_number(len(triplets))
        generated = closure(parse_operations(tuple(triplets)))
        if generated is None:
            raise CrystalError(f"the operations in {tag} generate no group")
        found[tag] = generated
    if len({operations.codes for operations in found.values()}) > 1:
        counts = " and ".join(f"{len(each)} in {tag}" for tag, each in found.items())
        raise CrystalError(f"two lists of symmetry operations differ: {counts}")
    return next(iter(found.values()), None)


def _magnetic_operations(tags: Tags, lattice: np.ndarray) -> Operations | None:
    """The effect of magnetic operations on positions, without time reversal; None if none."""
    listed = next(iter(tags.columns("magnetic operations").values()), [])
    if not listed:
        return None
    centrings = next(iter(tags.columns("magnetic centrings").values()), [])
    check_number(len(listed) * max(1, len(centrings)))
    spatial, unprimed = _split_time(listed)
    centring, unprimed_centring = _split_time(centrings)
    operations = product_of(centring, spatial)
    if missing := missing_product(operations):
        raise CrystalError(f"the magnetic operations are not a group: {missing} is missing")
    if not fit_cell(operations, lattice):
        raise CrystalError(f"{_cell_text(lattice)} is not a cell of the magnetic operations")
    for text in tags.values("magnetic number").values():
        if not (found := _BNS.fullmatch(text)):
            continue
        # in a black-white lattice (type IV), the number is that of the operations without time
        # reversal
        numbers = [
            group_number(each, lattice)
            for each in (operations, product_of(unprimed_centring, unprimed))
            if missing_product(each) is None
        ]
        if int(found[1]) not in numbers:
            raise CrystalError(
                f"the {len(operations)} magnetic operations are those of space group "
                f"{numbers[0]}, not of {text}"
            )
    return operations


def _split_time(texts: list[str]) -> tuple[Operations, Operations]:
    """The spatial parts of all operations, and of those without time reversal."""
    spatial, unprimed = [], []
    for text in texts:
        parts = text.split(",")
        time = parts[3].strip() if len(parts) == 4 else ""
        if time not in ("+1", "1", "-1"):
            raise CrystalError(f"magnetic operation {text!r} cannot be read")
        spatial.append(",".join(parts[:3]))
        if time != "-1":
            unprimed.append(spatial[-1])
    return parse_operations(tuple(spatial)), parse_operations(tuple(unprimed))


def _compare(listed: Operations, declared: _Declared | None, lattice: np.ndarray) -> Symmetry:
    """Compare the listed operations with the declared group."""
    as_listed = Reading(f"the {len(listed)} listed operations", listed)
    equal = [g for g in declared.groups if g.operations.codes == listed.codes] if declared else []
    if declared and equal and not declared.conflict:
        return Symmetry(equal)
    missing = missing_product(listed)
    if declared is None:
        if missing:
            raise CrystalError(f"the listed operations are not a group: {missing} is missing")
        return Symmetry([as_listed])
    groups = [g for g in declared.groups if listed.codes <= g.operations.codes]
    if missing:
        generated = closure(listed)
        if generated is not None and not declared.conflict:
            for group in groups:
                if group.operations.codes == generated.codes:
                    return Symmetry([group])
        if not groups:
            raise CrystalError(
                f"the listed operations are not a group: {missing} is missing; {declared.text} "
                "has other operations"
            )
    else:
        number = group_number(listed, lattice)
        same_type = number is not None and number == declared.number
        same_lattice = any(_centring(g.operations) == _centring(listed) for g in declared.groups)
        is_named = declared.has_setting or not same_lattice
        if not declared.conflict and same_type and not is_named:
            return Symmetry([as_listed])
        if same_type and is_named:
            groups = declared.groups
        groups = [as_listed, *groups]
    conflict = declared.conflict or _counts(listed, declared)
    return Symmetry(groups, conflict)


def _centring(operations: Operations) -> frozenset[tuple[int, ...]]:
    """The translations among the operations."""
    is_translation = (operations.rotations == np.eye(3, dtype=np.int64)).all(axis=(1, 2))
    return frozenset(map(tuple, operations.shifts[is_translation].tolist()))


def _counts(listed: Operations, declared: _Declared) -> str:
    operations = "symmetry operation is" if len(listed) == 1 else "symmetry operations are"
    if not declared.groups:
        return f"{len(listed)} {operations} listed, which are not those of {declared.text}"
    expected = len(declared.groups[0].operations)
    which = "others" if expected == len(listed) else str(expected)
    return f"{len(listed)} {operations} listed, but {declared.text} has {which}"


# Names, numbers and codes


def _declared(tags: Tags, lattice: np.ndarray, is_listed: bool) -> _Declared | None:
    """The groups that the file declares; None if it declares none that can be compared.

    Args:
        is_listed: whether operations are listed. An unknown name is then no error, since tables do
            not know all settings.
    """
    number = _declared_number(tags)
    halls, names = tags.values("hall"), tags.values("name")
    code = next(iter(tags.values("setting").values()), None)
    by_hall = [_of_hall(text, lattice, is_listed) for text in halls.values()]
    by_name = [_of_name(text, code, lattice) for text in dict.fromkeys(names.values())]
    known_names = [each for each in by_name if each is not None]
    if names and not known_names and not halls and not is_listed:
        raise CrystalError(f"unknown space group {next(iter(names.values()))!r}")
    found = [each for each in by_hall if each is not None] + known_names
    if not found and number is not None:
        found.append(_of_number(number, code, lattice))
    if not found:
        return None
    return _agree(found, number)


def _agree(found: list[_Declared], number: int | None) -> _Declared:
    """What several declarations have in common."""
    first = found[0]
    for other in found[1:]:
        if other.number != first.number:
            conflict = (
                f"{first.text} is number {first.number}, but {other.text} is number {other.number}"
            )
            return _Declared(first.text, first.groups, first.number, True, conflict)
        codes = [group.operations.codes for group in other.groups]
        common = [group for group in first.groups if group.operations.codes in codes]
        if not common:
            conflict = f"{first.text} and {other.text} are different settings"
            return _Declared(first.text, first.groups, first.number, True, conflict)
        setting = first.has_setting or other.has_setting
        first = _Declared(first.text, common, first.number, setting)
    if number is not None and first.number is not None and number != first.number:
        conflict = f"{first.text} is number {first.number}, not {number}"
        return _Declared(first.text, first.groups, first.number, True, conflict)
    return first


def _declared_number(tags: Tags) -> int | None:
    numbers = {}
    for tag, text in tags.values("number").items():
        if text in ("0", "-1"):  # programs write these if they do not know it
            continue
        if not (text.isascii() and text.isdecimal() and 1 <= int(text[:4]) <= 230):
            raise CrystalError(f"unknown space group number {text!r}")
        numbers[tag] = int(text)
    if len(set(numbers.values())) > 1:
        raise CrystalError(f"two numbers of a space group: {sorted(set(numbers.values()))}")
    return next(iter(numbers.values()), None)


def _of_hall(text: str, lattice: np.ndarray, is_listed: bool) -> _Declared | None:
    found = _hall_operations(text)
    if found is None:
        if is_listed:
            return None
        raise CrystalError(f"unknown space group, Hall symbol {text!r}")
    operations, number = found
    name = f"Hall symbol {text!r}"
    if number is None:
        number = group_number(operations, lattice)
    return _Declared(name, [Reading(name, operations)], number, has_setting=True)


@functools.lru_cache(maxsize=256)
def _hall_operations(text: str) -> tuple[Operations, int | None] | None:
    """The operations of a Hall symbol, and the number of the group if its setting is usual."""
    try:
        operations = gemmi.symops_from_hall(text)
    except _GEMMI_ERRORS:
        return None
    entry = gemmi.find_spacegroup_by_ops(operations)
    return from_gemmi(operations), None if entry is None else entry.number


def _of_name(text: str, code: str | None, lattice: np.ndarray) -> _Declared | None:
    found = _entries_of_name(text)
    if found is None:
        return None
    entries, suffix = found
    name = f"space group {text!r}"
    declared = _of_entries(name, entries, suffix, code, lattice)
    if not any(fit_cell(group.operations, lattice) for group in declared.groups):
        # a short monoclinic name, such as P 21/m, is the same for each unique axis
        same = [e for e in _BY_NUMBER[entries[0].number] if _short(e) == _compact(text)]
        others = _of_entries(name, same, None, code, lattice) if same else declared
        if any(fit_cell(group.operations, lattice) for group in others.groups):
            return others
    return declared


def _of_number(number: int, code: str | None, lattice: np.ndarray) -> _Declared:
    standard = gemmi.find_spacegroup_by_number(number)
    assert standard is not None
    entries = _TABLE[standard.hm] if code is None else _BY_NUMBER[number]
    return _of_entries(f"space group number {number}", entries, None, code, lattice)


def _of_entries(
    name: str, entries: list[gemmi.SpaceGroup], suffix: str | None, code: str | None,
    lattice: np.ndarray,
) -> _Declared:  # fmt: skip
    """The groups among some entries of gemmi's table that suffix, code and cell allow."""
    number = entries[0].number
    has_setting = suffix is not None or code is not None
    chosen = entries
    if suffix is not None:
        chosen = [entry for entry in chosen if entry.ext == suffix]
    if code is not None:
        chosen = [entry for entry in chosen if _has_code(entry, code)]
    if not chosen:
        given = " and ".join(repr(each) for each in (suffix, code) if each is not None)
        conflict = f"{name} has no setting {given}"
        return _Declared(name, [], number, has_setting=True, conflict=conflict)
    groups = [Reading(f"{name}{_origin(entry)}", _table_operations(entry)) for entry in chosen]
    # hexagonal or rhombohedral axes: the cell tells
    fitting = [group for group in groups if fit_cell(group.operations, lattice)]
    origins = {entry.ext for entry in chosen} & {"1", "2"}
    excluded = [
        Reading(f"origin choice {entry.ext}", _table_operations(entry))
        for entry in entries
        if len(origins) == 1 and entry.ext in {"1", "2"} - origins
    ]
    return _Declared(name, fitting or groups, number, has_setting, excluded=excluded)


def _origin(entry: gemmi.SpaceGroup) -> str:
    return f" (origin choice {entry.ext})" if entry.ext in ("1", "2") else ""


def _has_code(entry: gemmi.SpaceGroup, code: str) -> bool:
    """Whether a code of the International Tables, such as 2, H, b1 or 1cab, is that of an entry."""
    wanted = code.lower().replace(" ", "")
    ext = entry.ext.strip("\0").lower()
    axes = entry.qualifier or ""
    codes = {ext + axes, ext + (axes or "abc"), axes or "abc"}
    if ext:
        codes.add(ext)
    if not axes and not ext:
        codes |= {"1", "h" if entry.number >= 143 else "abc"}
    return wanted in codes or (len(axes) > 0 and wanted == axes.rstrip("123"))


def _compact(text: str) -> str:
    return re.sub(r"[\s_~()]", "", text)


def _short(entry: gemmi.SpaceGroup) -> str:
    """The symbol of a monoclinic group without its axes: P21/m for P 1 1 21/m."""
    return "".join(part for part in entry.hm.split() if part != "1")


def _names(entry: gemmi.SpaceGroup) -> set[str]:
    return {entry.hm.replace(" ", ""), entry.short_name()}


def _table() -> tuple[dict[str, list], dict[int, list], dict[str, str]]:
    by_name: dict[str, list[gemmi.SpaceGroup]] = {}
    by_number: dict[int, list[gemmi.SpaceGroup]] = {}
    spellings: dict[str, str] = {}
    for entry in gemmi.spacegroup_table():
        by_name.setdefault(entry.hm, []).append(entry)
        by_number.setdefault(entry.number, []).append(entry)
        for name in _names(entry):
            spellings.setdefault(name.lower(), entry.hm)
    for entry in gemmi.spacegroup_table():  # P 21/b, by which only P 1 1 21/b can be meant
        if 3 <= entry.number <= 15 and entry.hm.split()[1:3] == ["1", "1"]:
            spellings.setdefault(_short(entry).lower(), entry.hm)
    return by_name, by_number, spellings


_TABLE, _BY_NUMBER, _SPELLINGS = _table()


@functools.lru_cache(maxsize=512)
def _entries_of_name(text: str) -> tuple[list[gemmi.SpaceGroup], str | None] | None:
    """The entries of gemmi's table for a name, and the origin that its suffix gives."""
    text = _NUMBER_IN_NAME.sub("", text.strip())
    if entry := _find(text):
        return _TABLE[entry], None
    found = _SUFFIX.fullmatch(text)
    if found is None or not (entry := _find(found["base"])):
        return None
    suffix = found["code"] or found["origin"] or found["o"] or found["icsd"]
    suffix = {"S": "1", "Z": "2"}.get(suffix, suffix)
    if suffix in ("1", "2"):
        return _TABLE[entry], suffix
    if not _TABLE[entry][0].ext.strip("\0"):  # H or R after a group that has no such axes
        return None
    return _TABLE[entry], None  # the cell tells whether axes are hexagonal


def _find(name: str) -> str | None:
    """The name in gemmi's table for a Hermann-Mauguin symbol in one of its spellings."""
    for each in (name, re.sub(r"[_~]|<[^>]*>", "", name), re.sub(r"\((\d)\)", r"\1", name)):
        compact = each.replace(" ", "")
        if compact.lower() in _SPELLINGS:
            return _SPELLINGS[compact.lower()]
        try:
            entry = gemmi.find_spacegroup_by_name(each) if ":" not in each else None
        except _GEMMI_ERRORS:
            entry = None
        if entry is None and (short := _full_symbols().get(compact.replace("_", "").lower())):
            return short
        # gemmi takes an H or R at the end for a suffix; that is for the caller to decide
        if entry is not None and not compact[1:].endswith(("H", "R")):
            return str(entry.hm)
    return None


@functools.cache
def _full_symbols() -> dict[str, str]:
    """The names in gemmi's table by full symbols, such as F 4/m -3 2/m, which spglib knows."""
    import spglib

    found: dict[str, str] = {}
    for hall_number in range(1, 531):
        setting = spglib.get_spacegroup_type(hall_number)
        assert setting is not None
        short = _SPELLINGS.get(setting.international_short.replace("_", "").lower())
        if short is not None:
            full = re.sub(r"[\s_]", "", setting.international_full).lower()
            found.setdefault(full, short)
    return found


@functools.lru_cache(maxsize=600)
def _operations_of_index(number: int, xhm: str) -> Operations:
    entry = next(each for each in _BY_NUMBER[number] if each.xhm() == xhm)
    return from_gemmi(entry.operations())


def _table_operations(entry: gemmi.SpaceGroup) -> Operations:
    return _operations_of_index(entry.number, entry.xhm())


def _cell_text(lattice: np.ndarray) -> str:
    lengths, cosines = lengths_and_cosines(lattice)
    angles = [math.degrees(math.acos(min(1.0, max(-1.0, each)))) for each in cosines]
    return "a cell with " + " ".join(f"{value:.4g}" for value in (*lengths, *angles))
