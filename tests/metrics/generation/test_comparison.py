import pytest

from src.metrics.generation.comparison import compare, differing_settings, read_run

FIRST = {
    "num_generated": 100, "valid": 0.8, "valid_interval": [0.7, 0.9], "novel": 0.5,
    "novel_interval": None, "wdist_density": 0.2, "reference": "train.csv", "num_reference": 7,
    "test_reference": "test.csv", "tolerances": {"stol": 0.3}, "match_timeouts": 0,
    "floor": {"wdist_density": 0.1}, "input": "a", "matcher": "fast", "by_num_atoms": [{}],
}  # fmt: skip


def rows_of(*contents):
    runs = [read_run(str(i), content) for i, content in enumerate(contents)]
    return {row.figure: row for row in compare(runs)}, differing_settings(runs)


def test_a_run():
    run = read_run("a", FIRST)
    assert run.figures == {"valid": 0.8, "novel": 0.5, "wdist_density": 0.2, "match_timeouts": 0,
                           "floor.wdist_density": 0.1}  # fmt: skip
    assert run.intervals == {"valid": [0.7, 0.9]}
    assert set(run.settings) == {"num_generated", "reference", "num_reference", "test_reference",
                                 "tolerances", "input", "matcher"}  # fmt: skip


def test_the_best_is_that_of_the_direction():
    other = FIRST | {"valid": 0.9, "wdist_density": 0.3, "input": "b", "matcher": "pymatgen"}
    rows, differing = rows_of(FIRST, other)
    assert not differing
    assert list(rows)[-1] == "match_timeouts"
    assert (rows["valid"].best, rows["wdist_density"].best) == ([1], [0])
    assert rows["novel"].best == [0, 1]
    assert rows["floor.wdist_density"].best == rows["match_timeouts"].best == []
    assert (rows["valid"].is_share, rows["wdist_density"].is_share) == (True, False)
    assert rows["valid"].intervals[0] == [0.7, 0.9]


@pytest.mark.parametrize(
    ("change", "marked"),
    [
        ({"reference": "other.csv"}, {"novel", "floor.wdist_density"}),
        ({"num_reference": 8}, {"novel", "floor.wdist_density"}),
        ({"tolerances": {"stol": 0.5}}, {"novel"}),
        ({"test_reference": "val.csv"}, {"wdist_density", "floor.wdist_density"}),
        ({"num_generated": 50}, set()),
    ],
)
def test_figures_with_other_settings_are_not_compared(change, marked):
    rows, differing = rows_of(FIRST, FIRST | change)
    assert set(differing) == set(change)
    assert {name for name, row in rows.items() if row.differing} == marked
    assert not any(rows[name].best for name in marked)
    assert rows["valid"].best == [0, 1]


def test_unknown_figures_depend_on_everything():
    potentials = [
        {
            "potential": name,
            "stable_0.0_x": 0.1,
            "force_of_y": 2.0,
            "largest_force_x": {"0.5": value},
        }
        for name, value in (("a", 3), ("b", 4))
    ]
    rows, _ = rows_of(*potentials)
    assert all(row.differing == ["potential"] and not row.best for row in rows.values())
    same, _ = rows_of(potentials[0], potentials[1] | {"potential": "a"})
    assert same["largest_force_x.0.5"].best == [0]
    assert (same["stable_0.0_x"].best, same["force_of_y"].best) == ([0, 1], [])
    assert same["stable_0.0_x"].is_share


def test_a_figure_of_one_run_only():
    rows, _ = rows_of(FIRST, {"match_at_1": 0.6, "valid": 0.7, "tolerances": {"stol": 0.5}})
    assert (rows["match_at_1"].values, rows["match_at_1"].best) == ([None, 0.6], [])
    assert rows["match_at_1"].differing == []
    assert rows["valid"].best == [0]
