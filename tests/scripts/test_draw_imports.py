"""The picture of imports: circles are found, floors are right, and the docs are up to date."""

import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.draw_imports import (
    ENTRY_POINTS,
    Layout,
    Plan,
    describe,
    import_graph,
    main,
    make_plan,
    read_rooms,
)

ROOT = Path(__file__).resolve().parents[2]

# left, right and loose.py are above base, top is above left and right, and also imports base
SOURCES = {
    "__init__.py": "from house.base import x\n",
    "start.py": 'from house.top.run import run\n\nif __name__ == "__main__":\n    run()\n',
    "loose.py": "import house.base.x\nimport os.path\n",
    "top/run.py": "from house.left import a\nfrom house.right import sub\nimport house.base.x\n",
    "left/__init__.py": '"""Two\nlines."""\n',
    "left/a.py": "def f():\n    from house.base.x import name\n",
    "right/sub/__init__.py": "from house.right.sub.deep import y\n",
    "right/sub/deep.py": "from house.base import x\n",
    "base/x.py": "import json\n",
}


@pytest.fixture
def house(tmp_path) -> Path:
    folder = tmp_path / "house"
    for name, source in SOURCES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


@pytest.fixture
def circular(house) -> Path:
    """The same, but base imports top, so that top, left, right and base are in circles."""
    (house / "base" / "x.py").write_text("import house.top.run\n")
    return house


def plan_of(folder: Path) -> Plan:
    return make_plan(read_rooms(folder))


def test_rooms_are_folders_loose_modules_and_entry_points(house):
    rooms = read_rooms(house)
    assert set(rooms) == {ENTRY_POINTS, "loose.py", "top", "left", "right", "base"}
    assert {name: room.modules for name, room in rooms.items()} == {
        ENTRY_POINTS: ["start"], "loose.py": [], "top": ["run"], "left": ["a"], "right": ["sub/"],
        "base": ["x"],
    }  # fmt: skip
    assert (rooms["left"].num_files, rooms["left"].num_lines) == (2, 4)
    assert rooms[ENTRY_POINTS].imports == {"top": [("house.start", "house.top.run")]}
    assert rooms["left"].imports == {"base": [("house.left.a", "house.base.x")]}


def test_packages_are_no_modules(house):
    graph = import_graph(house)
    assert graph["house.top.run"] == {
        "house.left", "house.left.a", "house.right.sub", "house.base.x"
    }  # fmt: skip
    assert "house.left" not in graph


def test_a_room_is_one_floor_above_the_highest_that_it_imports(house):
    plan = plan_of(house)
    assert plan.floors == [["base"], ["left", "loose.py", "right"], ["top"], [ENTRY_POINTS]]
    assert plan.down == [
        (ENTRY_POINTS, "top"), ("left", "base"), ("loose.py", "base"), ("right", "base"),
        ("top", "left"), ("top", "right"),
    ]  # fmt: skip
    assert ("top", "base") not in plan.down  # the others imply it
    assert (plan.up, plan.red) == ([], set())


def test_a_circle_is_red_and_its_one_wrong_arrow_points_up(circular, house):
    plan = plan_of(circular)
    assert plan.up == [("base", "top")]
    assert plan.red == {
        ("base", "top"), ("top", "base"), ("top", "left"), ("top", "right"), ("left", "base"),
        ("right", "base"),
    }  # fmt: skip
    assert plan.floors == [["base"], ["left", "loose.py", "right"], ["top"], [ENTRY_POINTS]]


def test_two_circles(house):
    """A circle of two rooms is broken where fewer modules import; all upward arrows are needed."""
    (house / "base" / "x.py").write_text("import house.loose\n")
    (house / "base" / "y.py").write_text("import house.loose\n")
    (house / "left" / "b.py").write_text("import house.top.run\n")
    plan = plan_of(house)
    assert sorted(plan.up) == [("left", "top"), ("loose.py", "base")]
    level = {name: index for index, floor in enumerate(plan.floors) for name in floor}
    assert all(level[a] > level[b] for a, b in plan.down)
    assert all(level[a] < level[b] for a, b in plan.up)


@pytest.mark.parametrize("name", ["house", "circular"])
def test_nothing_overlaps_and_arrows_touch_their_rooms(name, request):
    plan = plan_of(request.getfixturevalue(name))
    layout = Layout(plan)
    boxes = list(layout.boxes.values())
    for i, one in enumerate(boxes):
        assert 0 < one.left < one.right < 10
        assert 0 < one.top < one.bottom < layout.height
        for other in boxes[:i]:
            assert (
                one.right < other.left or other.right < one.left
                or one.bottom < other.top or other.bottom < one.top
            )  # fmt: skip
    assert set(layout.curves) == {*plan.down, *plan.up}
    for (a, b), curve in layout.curves.items():
        upward = (a, b) in plan.up
        for room, (x, y), is_above in ((a, curve.vertices[0], not upward),
                                       (b, curve.vertices[-1], upward)):  # fmt: skip
            box = layout.boxes[room]
            assert box.left < x < box.right
            assert y == (box.bottom if is_above else box.top)


def test_the_picture_and_what_is_said_of_circles(circular, tmp_path, capsys):
    out = tmp_path / "new" / "picture.png"
    assert main([str(circular), str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 rooms on 4 floors" in said
    assert "circular: base imports top\n  house.base.x imports house.top.run\n" in said
    with Image.open(out) as picture:
        assert picture.width == 1500
        colors = {color for _, color in picture.convert("RGB").getcolors(maxcolors=1000)}
        description = json.loads(picture.info["Description"])
    assert any(red > 190 and green < 80 for red, green, _ in colors)
    assert description == describe(plan_of(circular))
    assert ["base", "top"] in description["arrows"]


def test_without_circles_nothing_is_red(house, tmp_path, capsys):
    main([str(house), str(tmp_path / "picture.png")])
    assert "circular" not in capsys.readouterr().out
    with Image.open(tmp_path / "picture.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(maxcolors=1000)}
    assert not any(red > 190 and green < 80 for red, green, _ in colors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["no_such_folder", "out.png"], "no Python"), ([str(ROOT / "src"), "out.pdf"], ".png")],
)
def test_what_cannot_be_drawn(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_picture_in_the_documentation_is_up_to_date():
    with Image.open(ROOT / "docs" / "images" / "house.png") as picture:
        shown = json.loads(picture.info["Description"])
    assert shown == describe(plan_of(ROOT / "src")), (
        "run `python scripts/draw_imports.py docs/images/house.png`"
    )
