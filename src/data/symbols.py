"""Element symbols as crystallographic files write them, and formulas of a whole cell.

The whole string is understood or refused: a prefix that happens to be an element would read water
(Wat) as tungsten, a vacancy (Va) as vanadium, and a mixed site (Mg.5Fe.5) as pure magnesium.
"""

import functools
import re
from collections.abc import Collection

import gemmi

from src.data.crystal import CrystalError

# Deuterium is hydrogen: no model here knows isotopes. T is not tritium but a tetrahedral site.
ATOMIC_NUMBERS = {gemmi.Element(z).name: z for z in range(1, 119)} | {"D": 1}

# Upper-case symbols that are also common groups of atoms: CO, NO, OH, hydrogen fluoride, and a site
# of several rare earths
_ALSO_MOLECULES = ("Co", "No", "Ho", "Hf", "Re")

_LAST_KNOWN = 103  # heavier elements have no crystals, but NH and CN are groups of atoms

_TYPE = re.compile(
    r"([A-Za-z]{1,2})(?:\d*\.?\d+[+-]|[+-]\d*\.?\d*)?", re.ASCII
)  # Fe, Fe3+, O-2, Na+
_NUMBERED = re.compile(r"([A-Za-z]{1,2})\d+", re.ASCII)
_LABEL = re.compile(r"([A-Za-z]+)((?:[!->@\[-`{-~0-9][!->@-~]*)?)", re.ASCII)
# other elements in the rest of a label: Fe1/Ni1, Mg.5Fe.5, H2O, C1H3
_SEVERAL_IN_LABEL = re.compile(r"[,/;|&:+]|\d\.\d|\d[A-Z][a-z]|^\.\d|^\d+H\d+$|^2O$", re.ASCII)
_CAPITALS_IN_LABEL = re.compile(r"(?<=\d)[A-Z]{2}(?=\d)", re.ASCII)
_LAST_CAPITALS = re.compile(r"\d+([A-Z]{2})", re.ASCII)  # FE1NI
_WORD_IN_LABEL = re.compile(r"(?<=[_\-*#'.])[A-Z][a-z](?![A-Za-z])", re.ASCII)  # La_Sr
_HYDROGENS_IN_LABEL = re.compile(r"\d*[_-]?H\d*|[_-][Hh]\d*", re.ASCII)  # C1H, O-H
_TOKEN = re.compile(r"([A-Za-z]{1,2})(\d*\.?\d*)(?:\(\d+\))?", re.ASCII)
_PLAIN = re.compile(r"[A-Z][a-z]?\d*(?: [A-Z][a-z]?\d*)*", re.ASCII)
_GROUP = re.compile(
    r"(?:(?<![A-Za-z\d.])(?P<before>\d+\.?\d*)\s*)?\((?P<inner>[^()]*[A-Za-z][^()]*)\)"
    r"(?P<after>\d*\.?\d*)",
    re.ASCII,
)  # (O H)2, 2(H2 O); not the uncertainty of O1.5(2)
_RUN = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)", re.ASCII)


def element_of_symbol(text: str) -> int:
    """The atomic number of an element symbol in its usual spelling, such as `Fe` or `D`.

    Raises:
        CrystalError: if it is none.
    """
    number = ATOMIC_NUMBERS.get(text)
    if number is None:
        raise CrystalError(f"{text!r} is not an element")
    return number


def element_of_type(text: str, label: str | None, known: Collection[int]) -> int:
    """The atomic number for the type of a site, such as `Fe`, `FE`, `Fe3+`, `O2-` or `D`.

    Args:
        text: the type. A number without a sign, as in `Fe1`, must be that of a label.
        label: the label of the site, if it has one.
        known: the elements of the file's formula, which decide whether `CO` is cobalt.

    Raises:
        CrystalError: if it is no single element.
    """
    plain = ATOMIC_NUMBERS.get(text)
    if plain is not None:
        return plain
    found = _TYPE.fullmatch(text)
    if found is None and (numbered := _NUMBERED.fullmatch(text)):
        same = label is None or re.match(numbered[1] + r"(?![a-z])", label, re.IGNORECASE)
        found = numbered if same else None
    if found is None:
        raise CrystalError(f"{text!r} is not an element")
    return _element(found[1], text, known, ())


def element_of_label(label: str, known: Collection[int], lone: Collection[str]) -> int:
    """The atomic number for the label of a site without a type, such as `Fe1`, `O_1` or `FE2A`.

    All leading letters together must be an element symbol.

    Args:
        known: the elements of the file's formula.
        lone: the single letters that labels of the file begin with: beside `C1`, `CA1` may be
            carbon.

    Raises:
        CrystalError: if it does not name one element.
    """
    found = _LABEL.fullmatch(label)
    if found is None or _SEVERAL_IN_LABEL.search(found[2]) or _names_another(*found.groups()):
        raise CrystalError(f"{label!r} is not an element")
    if not known and found[1].upper() != "H" and _HYDROGENS_IN_LABEL.fullmatch(found[2]):
        raise CrystalError(
            f"{label!r} is not an element: it may stand for hydrogens too; give the types or the "
            "formula"
        )
    return _element(found[1], label, known, lone)


def _names_another(letters: str, rest: str) -> bool:
    """Whether the rest of a label has the symbol of another element, as in FE1NI1 or La_Sr."""
    others = _CAPITALS_IN_LABEL.findall(rest) + _WORD_IN_LABEL.findall(rest)
    if len(letters) == 2 and letters.isupper() and (last := _LAST_CAPITALS.fullmatch(rest)):
        others.append(last[1])
    return any(each.capitalize() in ATOMIC_NUMBERS for each in others)


def leading_letter(label: str) -> str:
    """The letter of a label such as `C1`, in upper case; empty if it begins with more letters."""
    found = _LABEL.fullmatch(label)
    return found[1].upper() if found and len(found[1]) == 1 else ""


def _element(letters: str, text: str, known: Collection[int], lone: Collection[str]) -> int:
    symbol = letters.capitalize()
    number = ATOMIC_NUMBERS.get(symbol)
    if number is None or len(letters) > 2:
        raise CrystalError(f"{text!r} is not an element")
    is_unclear = symbol in _ALSO_MOLECULES or number > _LAST_KNOWN or letters[0].upper() in lone
    if letters != symbol and len(letters) == 2 and is_unclear and number not in known:
        raise CrystalError(
            f"{text!r} is not an element: it may be {symbol} or {' and '.join(letters.upper())}; "
            "write the symbol in its usual spelling"
        )
    return number


@functools.lru_cache(maxsize=4096)
def parse_formula(text: str) -> dict[int, float] | None:
    """The amounts in a formula such as `C6 H6 O`, by atomic number; None if it is not clear.

    The result is shared, and must not be changed.
    """
    amounts: dict[int, float] = {}
    if "(" in text and _GROUP.search(text):
        expanded = _without_groups(text)
        return None if expanded is None else parse_formula(expanded)
    if _PLAIN.fullmatch(text):
        for symbol, amount in _RUN.findall(text):
            if symbol not in ATOMIC_NUMBERS:
                return None
            number = ATOMIC_NUMBERS[symbol]
            amounts[number] = amounts.get(number, 0.0) + float(amount or 1)
        return amounts
    for token in text.replace(",", " ").split():
        found = _TOKEN.fullmatch(token)
        pairs = [(found[1].capitalize(), found[2])] if found else []
        if found and found[1].capitalize() in ATOMIC_NUMBERS:
            if found[1].isupper() and pairs[0][0] in _ALSO_MOLECULES:
                return None  # CO2 may be carbon dioxide
        else:
            pairs = _RUN.findall(token)
            if "".join(symbol + amount for symbol, amount in pairs) != token:
                return None
        for symbol, amount in pairs:
            if symbol not in ATOMIC_NUMBERS or amount == ".":
                return None
            number = ATOMIC_NUMBERS[symbol]
            amounts[number] = amounts.get(number, 0.0) + float(amount or 1)
    return amounts or None


def _without_groups(text: str) -> str | None:
    """A formula with `O2 H2` instead of `(O H)2` or `2(O H)`; None if a group is not clear."""
    while found := _GROUP.search(text):
        amounts = parse_formula(found["inner"])
        if amounts is None or (found["before"] and found["after"]):
            return None
        times = float(found["before"] or found["after"] or 1)
        group = formula_text({number: times * amount for number, amount in amounts.items()})
        text = f"{text[: found.start()]} {group} {text[found.end() :]}"
    return text


def formula_text(amounts: dict[int, float]) -> str:
    """A formula such as `Na4 Cl4`, for messages."""
    return " ".join(f"{gemmi.Element(z).name}{n:g}" for z, n in sorted(amounts.items()))
