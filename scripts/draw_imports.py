"""Draw which folders of the code import which: `python scripts/draw_imports.py [SOURCE] OUT.png`.

Each folder of SOURCE (`src` by default) is a room, and so is each loose module that is not an entry
point. A room stands on a floor above everything it imports, so arrows point down. Circular imports
are red, and at least one arrow of each circle points up. Arrows that others imply are left out: if
a imports b and b imports c, there is no arrow from a to c.
"""

import argparse
import ast
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve
from PIL import Image  # a dependency of matplotlib
from PIL.PngImagePlugin import PngInfo

ROOT = Path(__file__).resolve().parents[1]
ENTRY_POINTS = "entry points"

Graph = Mapping[str, Iterable[str]]  # what each node imports
Arrow = tuple[str, str]  # the room that imports, and the one it imports


# Imports. They are read from the source code; nothing is imported to find them.


def imported_modules(source: str) -> list[str]:
    """Dotted names that a module imports, anywhere in it; relative imports as a dot.

    A name imported from a package may be a module of it, so `from src.data import cif` gives both
    `src.data` and `src.data.cif`.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(".")
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def module_of(path: Path, folder: Path) -> str:
    """`src.data.cif` for data/cif.py in the folder src, `src.data` for data/__init__.py."""
    name = ".".join((folder.name, *path.relative_to(folder).with_suffix("").parts))
    return name.removesuffix(".__init__")


def imports_of_files(folder: Path) -> dict[Path, set[str]]:
    """For each file of `folder`, the modules and packages of `folder` that it imports."""
    names = {path: module_of(path, folder) for path in sorted(folder.rglob("*.py"))}
    known = set(names.values())
    return {
        path: known.intersection(imported_modules(path.read_text(encoding="utf-8"))) - {name}
        for path, name in names.items()
    }


def import_graph(folder: Path) -> dict[str, set[str]]:
    """For each module of `folder`, the modules of `folder` that it imports.

    Packages are left out: they only pass on names of their own modules, which import each other.
    """
    return {
        module_of(path, folder): imports
        for path, imports in imports_of_files(folder).items()
        if path.name != "__init__.py"
    }


def circle_in(graph: Graph) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; else none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def reachable(graph: Graph, start: str) -> set[str]:
    """What a node imports, directly or through others."""
    found: set[str] = set()
    new = set(graph[start])
    while new:
        found |= new
        new = {other for name in new for other in graph[name]} - found
    return found


# The plan: rooms, floors and arrows


@dataclass
class Room:
    """A folder, a loose module, or all entry points together.

    Attributes:
        modules: the names to show, subfolders with a slash at the end; none for a loose module.
        num_files: Python files.
        num_lines: lines of these files.
        imports: for each imported room, pairs of a module here and one that it imports there.
    """

    modules: list[str] = field(default_factory=list)
    num_files: int = 0
    num_lines: int = 0
    imports: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        rooms: by name.
        floors: the names of the rooms on each floor, the lowest floor first. Each room is one floor
            above the highest room that it imports, not counting arrows that point up.
        down: arrows that point down, without those that others imply.
        up: arrows that close a circle; without them there is none.
        red: all arrows that are part of a circle, in either direction.
    """

    rooms: dict[str, Room]
    floors: list[list[str]]
    down: list[Arrow]
    up: list[Arrow]
    red: set[Arrow]


def read_rooms(folder: Path) -> dict[str, Room]:
    """The rooms of a folder of source code, by name."""
    files = imports_of_files(folder)
    room_of = {module_of(path, folder): _room_of(path, folder) for path in files}
    rooms: dict[str, Room] = {}
    for path, imports in files.items():
        module = module_of(path, folder)
        name, parts = room_of[module], path.relative_to(folder).parts
        if name is None:
            continue
        room = rooms.setdefault(name, Room())
        shown = f"{parts[1]}/" if len(parts) > 2 else path.stem
        if shown not in ("__init__", *room.modules) and path.name != name:
            room.modules.append(shown)
        room.num_files += 1
        room.num_lines += len(path.read_text(encoding="utf-8").splitlines())
        for imported in sorted(imports):
            other = room_of[imported]
            if other is not None and other != name:
                room.imports.setdefault(other, []).append((module, imported))
    return rooms


def _room_of(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    if len(parts) > 1:
        return parts[0]
    if path.name == "__init__.py":
        return None
    is_entry_point = '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    return ENTRY_POINTS if is_entry_point else path.name


def make_plan(rooms: dict[str, Room]) -> Plan:
    """Decide which room is on which floor, and which arrows are drawn."""
    graph = {name: set(room.imports) for name, room in rooms.items()}
    red = _in_circles(graph)
    up = _without_circles(graph, rooms)
    depth: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        depth[name] = 1 + max((depth[other] for other in graph[name]), default=-1)
    floors: list[list[str]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for name in sorted(depth):
        floors[depth[name]].append(name)
    down = [
        (a, b)
        for a in sorted(graph)
        for b in sorted(graph[a])
        if not any(b in reachable(graph, other) for other in graph[a])
    ]
    return Plan(rooms, floors, down, up, red)


def _in_circles(graph: Graph) -> set[Arrow]:
    return {(a, b) for a in graph for b in graph[a] if a in reachable(graph, b)}


def _without_circles(graph: dict[str, set[str]], rooms: Mapping[str, Room]) -> list[Arrow]:
    """Take arrows out of a graph until it has no circle, and return them.

    First those that break most circles, and among these the ones that fewest modules cause.
    """

    def cost(arrow: Arrow) -> tuple[int, int, Arrow]:
        a, b = arrow
        graph[a].remove(b)
        left = len(_in_circles(graph))
        graph[a].add(b)
        return left, len({module for module, _ in rooms[a].imports[b]}), arrow

    taken: list[Arrow] = []
    while red := _in_circles(graph):
        a, b = min(red, key=cost)
        graph[a].remove(b)
        taken.append((a, b))
    for a, b in list(taken):  # put back those that the others made harmless
        if a not in reachable(graph, b):
            graph[a].add(b)
            taken.remove((a, b))
    return taken


def describe(plan: Plan) -> dict[str, list[list[str]]]:
    """The rooms with their modules, and the arrows: what makes a picture out of date."""
    return {
        "rooms": sorted([name, *room.modules] for name, room in plan.rooms.items()),
        "arrows": sorted([a, b] for a, b in plan.down + plan.up),
    }


# The picture. Lengths are in inches, from the upper left corner; sizes of text are in points.

WIDTH, MARGIN = 10.0, 0.12
ROOM_GAP, CORRIDOR = 0.16, 0.34  # between rooms; width that an arrow needs to pass a floor
TITLE, COUNTS, NAMES = 12.5, 9.0, 9.5
PAD, TITLE_LINE, LINE = 0.13, 0.2, 0.2  # around the text of a room; heights of its lines
MAX_LINES = 4  # of names of modules; if more are needed, the names are left out
INK, FAINT, RED = "#22303c", "#5d6f7e", "#d62839"
LOWEST, HIGHEST = (0.80, 0.86, 0.91), (0.96, 0.94, 0.88)  # colors of floors

Corridor = tuple[str, str, int]  # an arrow's way past a floor: the two rooms, and which floor
Place = str | Corridor  # what stands on a floor: a room or a corridor


@dataclass(frozen=True)
class Box:
    """The position and size of a room or corridor."""

    left: float
    right: float
    top: float = 0.0
    bottom: float = 0.0

    @property
    def width(self) -> float:
        return self.right - self.left


@dataclass(frozen=True)
class Text:
    """The text in a room.

    Attributes:
        size: of the room's name, so that it fits.
        counts: numbers of files and lines.
        counts_left: how far right of the name's start they begin; None if they go below it.
        lines: the names of modules.
    """

    size: float
    counts: str
    counts_left: float | None
    lines: list[str]

    @property
    def height(self) -> float:
        num_lines = len(self.lines) + (self.counts_left is None)
        return 2 * PAD + TITLE_LINE + num_lines * LINE + (0.06 if num_lines else 0)


class Ruler:
    """Measures text, and breaks it into lines."""

    def __init__(self) -> None:
        self._renderer = FigureCanvasAgg(Figure((1, 1), dpi=720)).get_renderer()

    def width(self, text: str, size: float, weight: str = "normal") -> float:
        font = FontProperties(size=size, weight=weight)
        return self._renderer.get_text_width_height_descent(text, font, False)[0] / 720

    def text(self, name: str, room: Room, width: float) -> Text:
        """Lay out the text of a room of this width."""
        free = max(width - 2 * PAD, 0.1)
        size = TITLE * min(1.0, free / self.width(name, TITLE, "bold"))
        counts = f"{_number(room.num_lines)} line{'s' * (room.num_lines != 1)}"
        if room.num_files > 1:
            counts = f"{room.num_files} files, {counts}"
        left = self.width(name, size, "bold") + PAD
        fits = left + self.width(counts, COUNTS) <= free
        return Text(size, counts, left if fits else None, self._lines(room.modules, free))

    def _lines(self, names: Sequence[str], width: float) -> list[str]:
        lines: list[str] = []
        for name in names:
            longer = f"{lines[-1]}  ·  {name}" if lines else name
            if lines and self.width(longer, NAMES) <= width:
                lines[-1] = longer
            else:
                lines.append(name)
        fits = all(self.width(line, NAMES) <= width for line in lines)
        return lines if fits and len(lines) <= MAX_LINES else []


def _number(number: int) -> str:
    """To two significant figures, since the picture is not redrawn for every change."""
    return f"{round(number, -max(len(str(number)) - 2, 0)):,}"


class Layout:
    """The positions of rooms and arrows.

    Attributes:
        boxes: the boxes of rooms and corridors.
        texts: the texts of rooms.
        curves: the curves of arrows.
        height: the height of the picture.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ruler = Ruler()
        floor_of: dict[Place, int] = {
            name: index for index, floor in enumerate(plan.floors) for name in floor
        }
        self._floors: list[list[Place]] = [list(floor) for floor in plan.floors]
        self._ways: dict[Arrow, list[Place]] = {}  # the rooms of an arrow, its corridors between
        for a, b in plan.down + plan.up:
            step = 1 if floor_of[b] > floor_of[a] else -1
            passed = range(floor_of[a] + step, floor_of[b], step)
            corridors: list[Corridor] = [(a, b, floor) for floor in passed]
            for corridor in corridors:
                self._floors[corridor[2]].append(corridor)
                floor_of[corridor] = corridor[2]
            self._ways[a, b] = [a, *corridors, b]
        # the steps of arrows between each floor and the one above it, from the upper place
        self._steps: list[list[tuple[Place, Place]]] = [[] for _ in plan.floors]
        for way in self._ways.values():
            for pair in pairwise(way):
                upper, lower = sorted(pair, key=lambda place: -floor_of[place])
                self._steps[floor_of[lower]].append((upper, lower))

        self.boxes: dict[Place, Box] = {}
        for floor in self._floors:
            self.boxes |= self._spread(floor)
        self._arrange()
        self.texts = {
            name: self._ruler.text(name, room, self.boxes[name].width)
            for name, room in plan.rooms.items()
        }
        self.height = self._stack()
        self.curves = self._draw_curves()

    def _spread(self, floor: Sequence[Place]) -> dict[Place, Box]:
        """The places of a floor side by side, over the whole width; those with more names wider."""
        weights = {}
        for place in floor:
            if isinstance(place, str):
                names = self._plan.rooms[place].modules
                length = sum(self._ruler.width(name, NAMES) + 0.3 for name in names)
                weights[place] = 1.0 + 0.55 * math.sqrt(length)
        corridors = (len(floor) - len(weights)) * CORRIDOR
        free = WIDTH - 2 * MARGIN - (len(floor) - 1) * ROOM_GAP - corridors
        boxes, left = {}, MARGIN
        for place in floor:
            share = free / sum(weights.values())
            width = weights[place] * share if isinstance(place, str) else CORRIDOR
            boxes[place] = Box(left, left + width)
            left += width + ROOM_GAP
        return boxes

    def _ports(self, upper: Place, lower: Place) -> tuple[float, float]:
        """Where an arrow meets the two places: one straight below the other, if that is possible.

        The middle of a corridor is as far from the edge of the picture as a room's first port, so
        that arrows into corridors are straight.
        """
        inset = CORRIDOR / 2
        a, b = self.boxes[upper].left + inset, self.boxes[upper].right - inset
        c, d = self.boxes[lower].left + inset, self.boxes[lower].right - inset
        if max(a, c) <= min(b, d) + 1e-6:
            return ((max(a, c) + min(b, d)) / 2,) * 2
        return (b, c) if b < c else (a, d)

    def _arrange(self) -> None:
        """Order each floor so that arrows are short and straight, and cross little."""
        for _ in range(20):
            before = [list(floor) for floor in self._floors]
            for index, floor in enumerate(self._floors):
                for place in list(floor):
                    rest = [other for other in floor if other != place]
                    orders = [[*rest[:i], place, *rest[i:]] for i in range(len(floor))]
                    costs = []
                    for order in orders:
                        self.boxes |= self._spread(order)
                        costs.append(self._cost(index) + self._cost(index - 1))
                    floor[:] = orders[costs.index(min(costs))]
                    self.boxes |= self._spread(floor)
            if self._floors == before:
                return

    def _cost(self, index: int) -> float:
        """The cost of the arrows between a floor and the one above it."""
        if index < 0:
            return 0.0
        cost, ends = 0.0, []
        for upper, lower in self._steps[index]:
            x, y = self._ports(upper, lower)
            both_corridors = isinstance(upper, tuple) and isinstance(lower, tuple)
            a, b = self.boxes[upper], self.boxes[lower]
            apart = abs(a.left + a.right - b.left - b.right) / 2
            cost += (3.0 if both_corridors else 1.0) * abs(x - y) + 0.1 * apart
            ends.append((x, y))
        crossings = sum((x - v) * (y - w) < 0 for i, (x, y) in enumerate(ends) for v, w in ends[:i])
        return cost + 2.0 * crossings

    def _stack(self) -> float:
        """Put the floors below each other, and return the height of the picture."""
        top = bottom = MARGIN
        for index in reversed(range(len(self._floors))):
            floor = self._floors[index]
            bottom = top + max(self.texts[p].height for p in floor if isinstance(p, str))
            for place in floor:
                box = self.boxes[place]
                self.boxes[place] = Box(box.left, box.right, top, bottom)
            ports = [self._ports(*step) for step in self._steps[index - 1]] if index else []
            slanted = sum(abs(x - y) > 0.05 for x, y in ports)
            top = bottom + 0.34 + min(0.07 * slanted, 1.0)  # room for the curves
        return bottom + 0.32

    def _draw_curves(self) -> dict[Arrow, Curve]:
        """The line of each arrow: curved between floors, straight along corridors."""
        # for each step of each arrow, the x of where it starts and where it ends
        ends: dict[Arrow, list[list[float]]] = {}
        at: dict[tuple[Place, bool, float], list[tuple[float, Arrow, int]]] = defaultdict(list)
        for arrow, way in self._ways.items():
            ends[arrow] = [list(self._ports(a, b)) for a, b in pairwise(way)]
            down = self.boxes[way[0]].top < self.boxes[way[-1]].top
            (first, second), (before, last) = ends[arrow][0], ends[arrow][-1]
            at[way[0], down, round(first, 2)].append((second, arrow, 0))
            at[way[-1], not down, round(last, 2)].append((before, arrow, -1))
        for (room, _, x), meeting in at.items():  # arrows that would touch a room in one point
            box = self.boxes[room]
            step = min(0.16, (box.width - 0.1) / len(meeting))
            reach = step * (len(meeting) - 1) / 2
            middle = min(max(x, box.left + 0.05 + reach), box.right - 0.05 - reach)
            for i, (_, arrow, end) in enumerate(sorted(meeting)):
                if len(meeting) > 1:
                    ends[arrow][end][end] = middle - reach + i * step
        return {arrow: self._curve(way, ends[arrow]) for arrow, way in self._ways.items()}

    def _curve(self, way: Sequence[Place], ends: Sequence[Sequence[float]]) -> Curve:
        vertices: list[tuple[float, float]] = []
        codes: list[int] = []
        for (a, b), (x, y) in zip(pairwise(way), ends, strict=True):
            here, there = self.boxes[a], self.boxes[b]
            down = here.top < there.top
            start, stop = (here.bottom, there.top) if down else (here.top, there.bottom)
            bend = 0.6 * (stop - start)  # upright at both ends
            vertices += [(x, start), (x, start + bend), (y, stop - bend), (y, stop)]
            codes += [int(Curve.LINETO if codes else Curve.MOVETO), *[int(Curve.CURVE4)] * 3]
        return Curve(vertices, codes)


def draw(plan: Plan, out: Path) -> None:
    """Write the picture, a PNG that also carries `describe(plan)`."""
    layout = Layout(plan)
    figure = Figure(figsize=(WIDTH, layout.height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(layout.height, 0))
    axes.axis("off")
    for index, floor in enumerate(plan.floors):
        share = index / max(len(plan.floors) - 1, 1)
        color = [a + share * (b - a) for a, b in zip(LOWEST, HIGHEST, strict=True)]
        for name in floor:
            _draw_room(axes, name, layout.boxes[name], layout.texts[name], color)
    for arrow, curve in layout.curves.items():
        is_red = arrow in plan.red
        axes.add_patch(
            FancyArrowPatch(
                path=curve, arrowstyle="-|>,head_length=5,head_width=2.6", shrinkA=0, shrinkB=0,
                color=RED if is_red else FAINT, linewidth=1.8 if is_red else 1.3,
                capstyle="butt", joinstyle="round",
            )
        )  # fmt: skip
    note = "Arrows point from a folder to those it imports. Arrows that others imply are left out."
    if plan.red:
        note += " Red: circular imports."
    y = layout.height - 0.14
    axes.text(WIDTH / 2, y, note, size=COUNTS, color=FAINT, ha="center", va="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=150)
    description = PngInfo()
    description.add_text("Description", json.dumps(describe(plan)))
    # with few colors the file is a third as large
    Image.open(buffer).convert("RGB").quantize(128).save(out, optimize=True, pnginfo=description)


def _draw_room(axes: Axes, name: str, box: Box, text: Text, color: Sequence[float]) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (box.left, box.top), box.width, box.bottom - box.top,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=color, edgecolor=[0.82 * part for part in color],
        )
    )  # fmt: skip
    x, y = box.left + PAD, box.top + PAD + 0.15
    axes.text(x, y, name, size=text.size, weight="bold", color=INK)
    if text.counts_left is not None:
        axes.text(x + text.counts_left, y, text.counts, size=COUNTS, color=FAINT)
        y += 0.06
    else:
        y += LINE + 0.06
        axes.text(x, y, text.counts, size=COUNTS, color=FAINT)
    for i, line in enumerate(text.lines):
        axes.text(x, y + LINE * (i + 1), line, size=NAMES, color=INK)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture, print which imports are circular, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("`")[0].strip(" :") + ".", epilog=__doc__.partition("\n\n")[2]
    )
    parser.add_argument(
        "source", type=Path, nargs="?", default=ROOT / "src",
        help="the folder of the code (default: src)",
    )  # fmt: skip
    parser.add_argument("out", type=Path, help="the picture, a .png file")
    args = parser.parse_args(argv)
    rooms = read_rooms(args.source.resolve())
    if not rooms:
        parser.error(f"{args.source} holds no Python modules")
    if args.out.suffix != ".png":
        parser.error(f"{args.out} does not end in .png")
    plan = make_plan(rooms)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(plan, args.out)
    print(f"{args.out}: {len(rooms)} rooms on {len(plan.floors)} floors")
    for a, b in plan.up:
        print(f"circular: {a} imports {b}")
        for module, imported in rooms[a].imports[b]:
            print(f"  {module} imports {imported}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
