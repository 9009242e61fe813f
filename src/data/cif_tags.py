"""The items of a CIF data block under one spelling of their names.

A name can be written with dots or underscores and in any case: `_space_group.IT_number` is
`_space_group_IT_number`. Names with the same meaning in the core, symmetry, magnetic, powder and
macromolecular dictionaries are aliases of one another.
"""

import functools
import re
from collections.abc import Iterator

from gemmi import cif

from src.data.crystal import CrystalError

UNKNOWN = ("?", ".")

# Kinds of items that have aliases. In the spelling of `normal_name`.
ALIASES = {
    "operations": (
        "_space_group_symop_operation_xyz",
        "_symmetry_equiv_pos_as_xyz",
        "_space_group_symop_operation",
        "_symmetry_equiv_pos_xyz",
        "_symmetry_operation_xyz",
    ),
    "generators": ("_space_group_generator_xyz", "_space_group_symop_generator_xyz"),
    "magnetic operations": (
        "_space_group_symop_magn_operation_xyz",
        "_space_group_symop_magn_xyz",
        "_space_group_symop_magnetic_operation_xyz",
    ),
    "magnetic centrings": (
        "_space_group_symop_magn_centering_xyz",
        "_space_group_symop_magn_centring_xyz",
    ),
    "magnetic number": ("_space_group_magn_number_bns",),
    "hall": ("_space_group_name_hall", "_symmetry_space_group_name_hall"),
    "name": (
        "_space_group_name_h-m_alt",
        "_symmetry_space_group_name_h-m",
        "_space_group_name_h-m_full",
        "_space_group_name_h-m_ref",
        "_space_group_name_h-m",
        "_symmetry_space_group_name_h-m_alt",
        "_symmetry_space_group_name_h-m_full",
        "_symmetry_pdbx_full_space_group_name_h-m",
        "_symmetry_space_group_name",
        "_space_group_h-m_alt",
        "_space_group_name",
    ),
    "number": (
        "_space_group_it_number",
        "_symmetry_int_tables_number",
        "_symmetry_space_group_number",
        "_space_group_number",
        "_symmetry_it_number",
    ),
    "setting": (
        "_space_group_it_coordinate_system_code",
        "_symmetry_it_coordinate_system_code",
        "_space_group_it_coordinate_system",
    ),
}
_KIND = {name: kind for kind, names in ALIASES.items() for name in names}

# Parts of names that say how a crystal is symmetric. If a file has such an item and none of those
# above, it is not P1.
_SYMMETRY_WORDS = (
    "space_group", "spacegroup", "symmetry", "symop", "sg_symbol", "name_h-m", "name_hall",
    "schoenflies", "bravais", "centring_type", "cell_setting", "crystal_system", "pearson",
)  # fmt: skip
_NOT_OF_THE_CELL = (
    "_atom_", "_geom_", "_refln", "_diffrn", "_publ", "_citation", "_journal", "_computing",
    "_audit", "_exptl_crystal", "_struct", "_shelx", "_valence", "_topol",
    "_space_group_wyckoff", "_pd_proc", "_pd_meas", "_symmetry_equiv_pos_site_id",
    "_space_group_symop_id", "_symmetry_entry_id", "_space_group_id", "_space_group_entry_id",
)  # fmt: skip

_SUPERSPACE_WORDS = (
    "_ssg", "_cell_wave_vector", "_cell_subsystem", "_cell_commen_supercell", "_limit_index_m_",
)  # fmt: skip
_MODULATION_LOOPS = (
    "_atom_site_displace_", "_atom_site_occ_", "_atom_sites_modulation_", "_atom_site_phason_",
)  # fmt: skip
_MODULATION_FUNCTIONS = ("_fourier", "_special_func", "_legendre", "_xharm")
_PROGRAMS = ("_jana_",)  # which write items of the modulated dictionary under names of their own

# wave vectors of a magnetic structure in its own cell are those of a supercell: simple fractions
_WAVE_VECTORS = "_parent_propagation_vector_kxkykz"
_IN_BRACKETS = re.compile(r"[\[(]([^\])]*)")
_MAX_DENOMINATOR = 12
_WAVE_VECTOR_TOLERANCE = 1e-3
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:/\d+)?", re.ASCII)
_SYMBOL = re.compile(r"[A-Za-z]")

# abbreviations that stand for the space group in names of programs: _sg_name, _icsd_spgr
_SHORT_SYMMETRY_WORD = re.compile(r"_(?:sg|spg|spgr|h-m|hm|hall|wyckoff|international)(?=_|$)")


def normal_name(tag: str) -> str:
    """The name of a tag in lower case, with underscores instead of dots."""
    return tag.lower().replace(".", "_")


@functools.lru_cache(maxsize=4096)
def _classify(tag: str) -> tuple[str, str]:
    """The normal name of a tag, and its kind: one of `ALIASES`, or what it may say of symmetry."""
    name = normal_name(tag)
    if name in _KIND:
        return name, _KIND[name]
    if _is_of_superspace(name):
        return name, "superspace"
    is_of_symmetry = any(word in name for word in _SYMMETRY_WORDS)
    is_of_symmetry = is_of_symmetry or _SHORT_SYMMETRY_WORD.search(name) is not None
    return name, "symmetry" if is_of_symmetry and not name.startswith(_NOT_OF_THE_CELL) else ""


def _is_of_superspace(name: str) -> bool:
    for program in _PROGRAMS:
        name = f"_{name.removeprefix(program)}" if name.startswith(program) else name
    if any(word in name for word in _SUPERSPACE_WORDS) or name.startswith(_MODULATION_LOOPS):
        return True
    is_function = any(word in name for word in _MODULATION_FUNCTIONS)
    return is_function and name.startswith("_atom_site_")


def _is_commensurate(wave_vector: str) -> bool:
    """Whether the components of a wave vector, such as `[1/2 0 0.333]`, are simple fractions."""
    if _SYMBOL.search(wave_vector):  # a component such as alpha, which can have any value
        return False
    for text in _NUMBER.findall(wave_vector):
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / max(1, int(denominator or 1))
        if all(
            abs(value - round(value * n) / n) > _WAVE_VECTOR_TOLERANCE
            for n in range(1, _MAX_DENOMINATOR + 1)
        ):
            return False
    return True


class Tags:
    """The items of a data block by their normal name.

    Attributes:
        kinds: the names of the items of each kind.

    Raises:
        CrystalError: if a name is given twice, with different values.
    """

    def __init__(self, block: cif.Block) -> None:
        self._items: dict[str, tuple[list[str], int, int]] = {}
        self._given: dict[str, str] = {}
        self.kinds: dict[str, list[str]] = {}
        for item in block:
            if (pair := item.pair) is not None:
                given, value = str(pair[0]), str(pair[1])  # type: ignore[index]
                self._add(given, [value], 0, 1)
            elif (loop := item.loop) is not None:
                tags, values = loop.tags, loop.values
                for column, tag in enumerate(tags):
                    self._add(tag, values, column, len(tags))

    def _add(self, tag: str, values: list[str], column: int, width: int) -> None:
        name, kind = _classify(tag)
        if name in self._items and self.column(name) != values[column::width]:
            raise CrystalError(f"{self._given[name]} and {tag} are given with different values")
        self._items[name] = (values, column, width)
        self._given[name] = tag
        if kind:
            self.kinds.setdefault(kind, []).append(name)

    def column(self, name: str) -> list[str]:
        """The raw values of an item; empty if there is none."""
        item = self._items.get(name)
        return [] if item is None else item[0][item[1] :: item[2]]

    def raw(self, name: str) -> str | None:
        """The first raw value of an item."""
        item = self._items.get(name)
        return None if item is None or not item[0] else item[0][item[1]]

    def value(self, name: str) -> str | None:
        """The first value of an item, without quotation marks; None if it is missing or unknown."""
        raw = self.raw(name)
        return None if raw is None or raw in UNKNOWN else cif.as_string(raw).strip() or None

    def values(self, kind: str) -> dict[str, str]:
        """The values of the items of one kind that have one, by the tag as the file writes it."""
        found = {name: self.value(name) for name in self.kinds.get(kind, ())}
        return {self._given[name]: value for name, value in found.items() if value is not None}

    def known(self, name: str) -> list[str]:
        """The values of a column that are not unknown, without quotation marks."""
        return [cif.as_string(value) for value in self.column(name) if value not in UNKNOWN]

    def columns(self, kind: str) -> dict[str, list[str]]:
        """The known values of the columns of one kind, by the tag as the file writes it."""
        found = {self._given[name]: self.known(name) for name in self.kinds.get(kind, ())}
        return {tag: values for tag, values in found.items() if values}

    def texts(self) -> Iterator[tuple[str, str]]:
        """The first value of every item that is not of atoms, geometry or the like, by its tag."""
        for name, given in self._given.items():
            if not name.startswith(_NOT_OF_THE_CELL) and (value := self.value(name)) is not None:
                yield given, value

    def symmetry_tags(self) -> list[str]:
        """The tags, as the file writes them, that say something of the symmetry of the cell."""
        return [tag for kind in ("symmetry", *ALIASES) for tag in self.columns(kind)]

    def superspace_tag(self) -> str | None:
        """A tag that says that the crystal is modulated or a composite, if there is one."""
        for name in ("_cell_modulation_dimension", "_jana_cell_modulation_dimension"):
            if self.value(name) not in (None, "0"):
                return self._given[name]
        kind = "_exptl_crystal_type_of_structure"
        if (self.value(kind) or "").lower() in ("mod", "comp"):
            return self._given[kind]
        if not all(map(_is_commensurate, self._wave_vectors())):
            return self._given[_WAVE_VECTORS]
        return next(iter(self.columns("superspace")), None)

    def _wave_vectors(self) -> list[str]:
        """The wave vectors of a magnetic structure.

        Without quotes, the components of `k1 [0 0 1/2]` are four values, in two rows of two.
        """
        vectors = self.known(_WAVE_VECTORS)
        ids = self.known("_parent_propagation_vector_id")
        if len(ids) == len(vectors):
            text = " ".join(f"{id_} {vector}" for id_, vector in zip(ids, vectors, strict=True))
        else:
            text = " ".join(vectors)
        return _IN_BRACKETS.findall(text) or vectors
