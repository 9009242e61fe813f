"""Crystals as dictionaries, in the forms that programs of the field exchange as JSON.

pymatgen (`lattice` and `sites`), OPTIMADE (`lattice_vectors`, `cartesian_site_positions`,
`species_at_sites`; also the columns of LeMaterial's tables), JARVIS (`lattice_mat`, `coords`,
`elements`) and ASE (`numbers`, `positions`, `cell`). Nothing that a dictionary names is imported.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.data.crystal import (
    OCCUPANCY_TOLERANCE,
    Crystal,
    CrystalError,
    check_numbers,
    lattice_from_parameters,
    lengths_and_cosines,
    wrap_coords,
)
from src.data.symbols import ATOMIC_NUMBERS, element_of_symbol, formula_text, parse_formula

ID_KEYS = ("id", "material_id", "immutable_id", "jid", "unique_id")

# the columns or keys that hold a crystal as a dictionary
NESTED_KEYS = ("structure", "atoms")
OPTIMADE_KEYS = ("lattice_vectors", "species_at_sites", "cartesian_site_positions")
_FORMULA_KEYS = (
    "chemical_formula_reduced", "chemical_formula_descriptive", "chemical_formula_hill",
)  # fmt: skip
OPTIONAL_OPTIMADE_KEYS = (
    "species", "dimension_types", "nperiodic_dimensions", "nsites", "nelements", "elements",
    "elements_ratios", *_FORMULA_KEYS, "chemical_formula_anonymous", "structure_features",
    "site_coordinate_span",
)  # fmt: skip

# differences allowed between figures that say the same, which may be rounded
_RELATIVE = 0.01
_POSITION = 0.1  # Å
_ANGLE = 1.0  # degrees

_MAX_DEPTH = 4  # of dictionaries of crystals by ID


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of a JSON file.

    Attributes:
        content: what describes the crystal: a dictionary or CIF text.
        id: its ID, if there is one.
        values: properties, by name.
    """

    content: Any
    id: str | None
    values: Mapping[str, Any]


def find_entries(content: Any, key: str | None = None, depth: int = 0) -> Iterator[Found]:
    """Yield the crystals in the content of a JSON file; at least one entry.

    Args:
        content: a crystal, an entry with a crystal, a list of either, or a dictionary of them by
            ID; or the response of an OPTIMADE server, or an ASE database.
        key: the ID that the surrounding dictionary gives.
    """
    if isinstance(content, list) and depth < _MAX_DEPTH:
        for each in content:
            yield from find_entries(each, None, depth + 1)
        return
    if not isinstance(content, Mapping):
        yield Found(content, key, {})
        return
    if {"columns", "data"} <= content.keys() and isinstance(content["columns"], list):
        for row in content["data"]:  # a table of pandas
            is_row = isinstance(row, list) and len(row) == len(content["columns"])
            each = dict(zip(content["columns"], row, strict=True)) if is_row else row
            yield from find_entries(each, None, depth + 1)
        return
    if "data" in content and ("meta" in content or "links" in content):  # OPTIMADE
        yield from find_entries(content["data"], None, depth + 1)
        return
    if "nextid" in content and isinstance(content.get("ids"), list):  # ASE
        for id_ in content["ids"]:
            yield from find_entries(content.get(str(id_)), None, depth + 1)
        return
    if (rows := _rows_of_columns(content)) is not None:
        for id_, row in rows.items():
            yield from find_entries(row, id_, depth + 1)
        return
    lists = [v for v in content.values() if isinstance(v, list) and v and _leads_to_crystal(v[0])]
    if len(lists) == 1 and depth < _MAX_DEPTH and not is_crystal(content):
        yield from find_entries(lists[0], None, depth + 1)
        return
    if is_crystal(content) or depth >= _MAX_DEPTH or not _holds_only_entries(content):
        yield _entry(content, key)
        return
    for id_, each in content.items():
        yield from find_entries(each, str(id_), depth + 1)


def _rows_of_columns(content: Mapping[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The rows of a table that pandas wrote by columns; None if it is none."""
    columns = list(content.values())
    crystals = [content[key] for key in (*NESTED_KEYS, "cif") if key in content]
    if not crystals or (isinstance(crystals[0], Mapping) and is_crystal(crystals[0])):
        return None
    if not all(isinstance(column, Mapping) for column in columns):
        return None
    ids = columns[0].keys()
    if not ids or any(column.keys() != ids for column in columns):
        return None
    rows = {str(id_): {name: content[name][id_] for name in content} for id_ in ids}
    return rows if is_crystal(next(iter(rows.values()))) else None


def _holds_only_entries(content: Mapping[str, Any]) -> bool:
    """Whether a dictionary seems to have crystals as its values, by ID."""
    values = list(content.values())
    num_entries = sum(isinstance(v, Mapping) or _is_cif(v) for v in values)
    # a few damaged ones, such as null, are entries as well
    if num_entries < len(values) and (2 * num_entries <= len(values) or num_entries < 2):
        return False
    return any(_is_cif(v) or _leads_to_crystal(v) for v in values)


def _leads_to_crystal(content: Any, depth: int = 0) -> bool:
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return False
    return is_crystal(content) or any(
        _leads_to_crystal(each, depth + 1) for each in list(content.values())[:3]
    )


def _is_cif(value: Any) -> bool:
    return isinstance(value, str) and "_cell_length_a" in value


def is_crystal(content: Mapping[str, Any]) -> bool:
    """Whether a dictionary describes a crystal, itself or under one of its keys."""
    if any(_is_nested(content.get(key)) for key in (*NESTED_KEYS, "attributes")):
        return True
    return _is_cif(content.get("cif")) or _form_of(content) is not None


def _is_nested(value: Any) -> bool:
    """Whether a value is a dictionary, or its JSON text."""
    return isinstance(value, Mapping) or (isinstance(value, str) and value.lstrip()[:1] == "{")


def _entry(content: Mapping[str, Any], key: str | None) -> Found:
    values: dict[str, Any] = {}
    crystal: Any = content
    nested = next((k for k in NESTED_KEYS if _is_nested(content.get(k))), None)
    if nested is not None:
        values, crystal = _scalars(content), content[nested]
        values.pop(nested, None)
    elif isinstance(content.get("attributes"), Mapping):  # an OPTIMADE entry
        values = {**_scalars(content["attributes"]), **_scalars(content)}
        crystal = content["attributes"]
    elif _is_cif(content.get("cif")):
        values, crystal = _scalars(content), content["cif"]
        del values["cif"]
    elif _form_of(content) in ("optimade", "ase"):
        values = _scalars(content)
    if isinstance(crystal, Mapping):
        for name in ("properties", "key_value_pairs"):
            if isinstance(crystal.get(name), Mapping):
                values |= _scalars(crystal[name])
    ids = [values.pop(name, None) for name in ID_KEYS]
    id_ = next((str(each) for each in ids if each is not None), key)
    return Found(crystal, id_, values)


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): v for k, v in values.items() if isinstance(v, (str, int, float, np.generic))}


def _form_of(content: Mapping[str, Any]) -> str | None:
    if {"lattice", "sites"} <= content.keys():
        return "pymatgen"
    if "lattice_vectors" in content and "cartesian_site_positions" in content:
        return "optimade"
    if {"lattice_mat", "coords", "elements"} <= content.keys():
        return "jarvis"
    if {"positions", "cell"} <= content.keys() and ("numbers" in content or "symbols" in content):
        return "ase"
    return None


def load_json(text: str) -> Any:
    """The content of JSON text.

    Raises:
        ValueError: if it is no JSON, or has a key twice in a dictionary: one would be lost.
    """
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = next(key for key, number in Counter(k for k, _ in pairs).items() if number > 1)
        raise ValueError(f"the key {twice!r} is given twice: one of them would be lost")
    return content


def crystal_of_content(content: Any) -> Crystal:
    """The crystal that a dictionary, or its JSON text, describes.

    Raises:
        CrystalError: if it is in none of the known forms, not ordered, not periodic in three
            dimensions, or damaged.
    """
    if isinstance(content, str):
        try:
            content = load_json(content)
        except ValueError as error:
            raise CrystalError(f"not valid JSON: {error}") from error
    form = _form_of(content) if isinstance(content, Mapping) else None
    if form is None:
        raise CrystalError(
            "the JSON is not a pymatgen Structure, nor a crystal of OPTIMADE, JARVIS or ASE"
        )
    try:
        crystal = _READERS[form](content)
    except CrystalError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, ArithmeticError) as error:
        raise CrystalError(f"damaged {form} dictionary: {error!r}") from error
    if not crystal.num_atoms:
        raise CrystalError("no atoms")
    check_numbers(crystal)
    return crystal


def _pymatgen(content: Mapping[str, Any]) -> Crystal:
    given = content["lattice"]
    _check_periodic(given.get("pbc"))
    if "matrix" in given:
        lattice = _array(given["matrix"], (3, 3))
        lengths, angles = (
            [given.get(name) for name in names]
            for names in (("a", "b", "c"), ("alpha", "beta", "gamma"))
        )
        _check_cell(lattice, lengths, given.get("volume"), angles)
    else:
        names = ("a", "b", "c", "alpha", "beta", "gamma")
        a, b, c, *angles = (float(given[name]) for name in names)
        lattice = lattice_from_parameters((a, b, c), angles)
    numbers, coords = [], []
    for site in content["sites"]:
        species = site["species"]
        if len(species) != 1 or not _is_full(species[0].get("occu", 1)):
            raise CrystalError("partial occupancies: not an ordered crystal")
        numbers.append(_element(species[0]["element"]))
        if "abc" in site:
            coords.append(_array(site["abc"], (3,)))
            _check_position(coords[-1], site.get("xyz"), lattice)
        else:
            coords.append(_array(site["xyz"], (3,)) @ _inverse(lattice))
    return _crystal(lattice, numbers, coords)


def _optimade(content: Mapping[str, Any]) -> Crystal:
    _check_periodic(content.get("dimension_types"))
    if content.get("nperiodic_dimensions", 3) not in (3, None):
        raise CrystalError("not periodic in three dimensions")
    if features := _plain(content.get("structure_features")):
        raise CrystalError(f"structure_features are {', '.join(map(str, features))}: not supported")
    span = content.get("site_coordinate_span")
    if span not in (None, "", "unit_cell") and not _is_nan(span):
        raise CrystalError(f"site_coordinate_span is {span}: the sites are not those of the cell")
    lattice = _array(content["lattice_vectors"], (3, 3))
    element_of: dict[str, int] = {}
    for species in _plain(content.get("species")) or []:
        symbols = list(species["chemical_symbols"])
        amounts = list(species.get("concentration") or [1])
        if len(symbols) != 1 or not _is_full(amounts[0]) or species.get("attached"):
            continue  # an error only if a site has it
        if element_of.get(species["name"], element := element_of_symbol(symbols[0])) != element:
            raise CrystalError(f"two species are named {species['name']!r}")
        element_of[species["name"]] = element
    has_species = _plain(content.get("species")) is not None
    numbers = []
    for name in _plain(content["species_at_sites"]):
        if has_species and name not in element_of:
            raise CrystalError(f"the species {name!r} is not one element: not an ordered crystal")
        numbers.append(element_of[name] if has_species else element_of_symbol(name))
    _check_optimade_claims(content, numbers)
    positions = _array(content["cartesian_site_positions"], (len(numbers), 3))
    coords = positions @ _inverse(lattice)
    given = _plain(content.get("fractional_site_positions"))
    if given is not None:
        for one, other in zip(coords, _array(given, (len(numbers), 3)), strict=True):
            _check_position(one, other @ lattice, lattice)
    return _crystal(lattice, numbers, coords)


def _check_optimade_claims(content: Mapping[str, Any], numbers: list[int]) -> None:
    """Compare the atoms with other properties of an entry, if it has these."""
    sites = _plain(content.get("nsites"))
    if sites is not None and sites != len(numbers):
        raise CrystalError(f"nsites is {sites:g}, but there are {len(numbers)} sites")
    symbols = _plain(content.get("elements"))
    if symbols and {ATOMIC_NUMBERS.get(each, 0) for each in symbols} != set(numbers):
        raise CrystalError(
            f"elements are {', '.join(map(str, symbols))}, but not those of the sites"
        )
    counts = Counter(numbers)
    kinds = _plain(content.get("nelements"))
    if kinds is not None and kinds != len(counts):
        raise CrystalError(f"nelements is {kinds:g}, but the sites have {len(counts)} elements")
    ratios = _plain(content.get("elements_ratios"))
    if symbols and ratios:
        for symbol, ratio in zip(symbols, ratios, strict=True):
            found = counts[ATOMIC_NUMBERS[symbol]] / len(numbers)
            if abs(found - ratio) > _RELATIVE:
                raise CrystalError(f"{ratio:g} of the atoms are said to be {symbol}, not {found:g}")
    for key in _FORMULA_KEYS:
        text = content.get(key)
        formula = _optimade_formula(text) if isinstance(text, str) else None
        if formula is None:
            continue
        times = len(numbers) / sum(formula.values())
        expected = {number: amount * times for number, amount in formula.items()}
        if counts.keys() != expected.keys() or any(
            abs(counts[number] - amount) > _RELATIVE * amount for number, amount in expected.items()
        ):
            raise CrystalError(f"{key} is {text}, but the sites have {formula_text(dict(counts))}")
    _check_anonymous(content.get("chemical_formula_anonymous"), counts)


def _optimade_formula(text: str) -> dict[int, float] | None:
    """The amounts in a formula, which may have groups such as (OH)2; None if it is not clear."""
    formula = parse_formula(text)
    if formula is not None or not re.fullmatch(r"[A-Za-z0-9()]+", text, re.ASCII):
        return formula
    from pymatgen.core import Composition  # slow to import, and rarely needed

    try:
        amounts = Composition(text).get_el_amt_dict()
    except ValueError:
        return None
    if not amounts or not all(symbol in ATOMIC_NUMBERS for symbol in amounts):
        return None
    return {ATOMIC_NUMBERS[symbol]: float(amount) for symbol, amount in amounts.items()}


def _check_anonymous(text: Any, counts: Counter[int]) -> None:
    """Compare the atoms with a formula such as A2B, in which letters stand for elements."""
    found = re.findall(r"[A-Z][a-z]?(\d*)", text) if isinstance(text, str) else []
    if not found:
        return
    expected = sorted(int(number or 1) for number in found)
    times = counts.total() / sum(expected)
    if [times * number for number in expected] != sorted(counts.values()):
        raise CrystalError(
            f"chemical_formula_anonymous is {text}, but the sites have {formula_text(dict(counts))}"
        )


def _check_cell(lattice: np.ndarray, lengths: Any, volume: Any = None, angles: Any = None) -> None:
    """Compare a lattice with other figures of the same dictionary, those that it has."""
    for given, found in zip(lengths or (), np.linalg.norm(lattice, axis=1).tolist(), strict=False):
        if given is not None and abs(float(given) - found) > _RELATIVE * found:
            raise CrystalError(f"a vector is {found:.6g} Å long, but said to be {given} Å")
    cosines = lengths_and_cosines(lattice)[1] if angles else []
    for given, cosine in zip(angles or (), cosines, strict=False):
        found = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
        if given is not None and abs(float(given) - found) > _ANGLE:
            raise CrystalError(f"an angle is {found:.6g} degrees, but said to be {given}")
    found = abs(float(np.linalg.det(lattice)))
    if volume is not None and abs(float(volume) - found) > 3 * _RELATIVE * found:
        raise CrystalError(f"the cell has {found:.6g} Å^3, but is said to have {volume} Å^3")


def _check_position(coords: np.ndarray, given: Any, lattice: np.ndarray) -> None:
    """Compare fractional coordinates with a Cartesian position (Å), apart from whole vectors."""
    if given is None:
        return
    offset = coords - _array(given, (3,)) @ _inverse(lattice)
    distance = float(np.linalg.norm((offset - np.rint(offset)) @ lattice))
    if distance > _POSITION:
        raise CrystalError(
            f"the fractional and Cartesian coordinates of a site are {distance:.3g} Å apart"
        )


def _jarvis(content: Mapping[str, Any]) -> Crystal:
    lattice = _array(content["lattice_mat"], (3, 3))
    _check_cell(lattice, _plain(content.get("abc")), angles=_plain(content.get("angles")))
    numbers = [element_of_symbol(symbol) for symbol in _plain(content["elements"])]
    coords = _array(content["coords"], (len(numbers), 3))
    cartesian = content.get("cartesian", False)
    if not isinstance(cartesian, (bool, np.bool_)):
        raise CrystalError(f"cartesian is {cartesian!r}, neither true nor false")
    return _crystal(lattice, numbers, coords @ _inverse(lattice) if cartesian else coords)


def _ase(content: Mapping[str, Any]) -> Crystal:
    cell = content["cell"]
    info = content.get("info")
    if isinstance(info, Mapping) and info.get("occupancy"):
        sites = info["occupancy"].values()
        if not all(len(site) == 1 and all(map(_is_full, site.values())) for site in sites):
            raise CrystalError("partial occupancies: not an ordered crystal")
    _check_periodic(_array(content.get("pbc", True)).tolist())
    if isinstance(cell, Mapping) and "array" in cell:
        cell = cell["array"]
    lattice = _array(cell)
    if lattice.shape == (3,):
        lattice = np.diag(lattice)
    elif lattice.shape == (6,):
        lattice = lattice_from_parameters(lattice[:3].tolist(), lattice[3:].tolist())
    if "numbers" in content:
        given = _array(content["numbers"])
        numbers = given.astype(int).tolist()
        if (given != numbers).any() or min(numbers, default=1) < 1:
            raise CrystalError("an atom has no element")
    else:
        numbers = [element_of_symbol(symbol) for symbol in content["symbols"]]
    positions = _array(content["positions"], (len(numbers), 3))
    return _crystal(_array(lattice, (3, 3)), numbers, positions @ _inverse(lattice))


_READERS = {"pymatgen": _pymatgen, "optimade": _optimade, "jarvis": _jarvis, "ase": _ase}


def _crystal(lattice: np.ndarray, numbers: list[int], coords: Any) -> Crystal:
    frac_coords = np.array(coords, dtype=float).reshape(-1, 3)
    with np.errstate(invalid="ignore"):
        frac_coords = wrap_coords(frac_coords)
    return Crystal(lattice, np.array(numbers, dtype=np.int64), frac_coords)


def _element(symbol: Any) -> int:
    """The element of a pymatgen species, which may be a dummy such as `X0+`."""
    try:
        return element_of_symbol(str(symbol))
    except CrystalError as error:
        raise CrystalError(f"an atom has no element: {error}") from error


def _is_full(occupancy: Any) -> bool:
    return occupancy is None or abs(float(occupancy) - 1) <= OCCUPANCY_TOLERANCE


def _check_periodic(periodic: Any) -> None:
    if periodic is not None and not np.all(_plain(periodic)):
        raise CrystalError("not periodic in three dimensions")


def _inverse(lattice: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(lattice)
    except np.linalg.LinAlgError as error:
        raise CrystalError("not periodic in three dimensions: the cell has no volume") from error


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    """Lists for arrays, and the content of JSON text, as in cells of a table."""
    if isinstance(value, str):
        value = json.loads(value) if value.strip() else None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return None if _is_nan(value) else value


def _array(value: Any, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Numbers as an array, also in the form in which ASE writes arrays to JSON."""
    value = _plain(value)
    if isinstance(value, Mapping) and "__ndarray__" in value:
        size, _, flat = value["__ndarray__"]
        value = np.array(flat, dtype=float).reshape(size)
    if isinstance(value, list):  # rows of a table are arrays of arrays
        value = [each.tolist() if isinstance(each, np.ndarray) else each for each in value]
    array = np.array(value, dtype=float)
    if shape is not None and array.shape != shape:
        raise CrystalError(f"an array of shape {array.shape} instead of {shape}")
    return array
