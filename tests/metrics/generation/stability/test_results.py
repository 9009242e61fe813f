"""Results that grow line by line."""

import json

import pytest

from src.metrics.generation.stability.results import (
    appending,
    check_settings,
    merge_results,
    read_results,
    read_settings,
)
from src.utils.errors import UserError
from src.utils.output import OutputError

SETTINGS = {"input_sha256": "ab", "num_crystals": 2, "shard": None, "relaxation": None}


def row(index: int, state: str = "as_generated", **more) -> dict:
    return {"index": index, "state": state, "id": f"c{index}", **more}


def make_folder(path, settings, rows):
    path.mkdir()
    check_settings(path, settings)
    with appending(path) as append:
        for each in rows:
            append(each)
    return path


def test_a_run_that_was_killed_goes_on(tmp_path, caplog):
    folder = make_folder(
        tmp_path / "a", SETTINGS, [row(0, energy=0.1), row(1, energy=float("nan"))]
    )
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'{"index": 2, "sta' + b"x" * 70_000)
    assert list(read_results(folder)) == [("as_generated", 0), ("as_generated", 1)]
    with appending(folder) as append:
        append(row(1, energy=0.3))  # the last one of a crystal counts
    assert "Removed an incomplete last line" in caplog.text
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["energy"] for line in lines] == [0.1, None, 0.3]
    assert read_results(folder)["as_generated", 1]["energy"] == 0.3


def test_settings_of_a_folder(tmp_path):
    folder = make_folder(tmp_path / "a", SETTINGS, [])
    check_settings(folder, SETTINGS)
    check_settings(folder, {**SETTINGS, "relaxation": {"fmax": 0.1}})
    check_settings(folder, SETTINGS)  # without it, it stays
    assert read_settings(folder)["relaxation"] == {"fmax": 0.1}
    for changed in ({"relaxation": {"fmax": 0.2}}, {"shard": "1/2"}, {"input_sha256": "cd"}):
        with pytest.raises(OutputError, match=f"{next(iter(changed))} was .* overwrite=true"):
            check_settings(folder, {**SETTINGS, **changed})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("")
    with pytest.raises(OutputError, match="something else"):
        check_settings(tmp_path / "b", SETTINGS)
    (folder / "settings.json").write_text("[]")
    with pytest.raises(UserError, match="is it a folder of results"):
        read_settings(folder)


@pytest.mark.parametrize("line", ["{", "{}", "[1]", '{"state": "relaxed", "index": "x"}'])
def test_a_damaged_line_is_named(tmp_path, line):
    folder = make_folder(tmp_path / "a", SETTINGS, [row(0)])
    with (folder / "results.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 2 is damaged"):
        read_results(folder)


def test_merging(tmp_path):
    both = {**SETTINGS, "relaxation": {"fmax": 0.1}}
    first = make_folder(tmp_path / "1", {**both, "shard": "1/2"}, [row(0, failed="x")])
    second = make_folder(tmp_path / "2", {**both, "shard": "2/2"}, [row(1), row(1, "relaxed")])
    (tmp_path / "out").mkdir()
    for _ in range(2):  # the second time, nothing is added
        merge_results([second, first], tmp_path / "out")
        found = read_results(tmp_path / "out")
        assert list(found) == [("as_generated", 0), ("as_generated", 1), ("relaxed", 1)]
        assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 3
    assert read_settings(tmp_path / "out") == both
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="has crystal 0 as_generated: merge all shards"):
        merge_results([second], tmp_path / "other")
    third = make_folder(tmp_path / "3", {**both, "input_sha256": "cd"}, [])
    with pytest.raises(UserError, match="do not belong together: input_sha256"):
        merge_results([first, third], tmp_path / "other")
