import json
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from src.commands.compare_generated import compare_files
from src.data.readers import DataError
from src.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"valid": 0.8, "valid_interval": [0.7, 0.9], "reference": "x</script>", "num_skipped": 2}


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    found = [tmp_path / name for name in ("a/eval", "b/eval")]
    for folder, valid in zip(found, (0.8, 0.85), strict=True):
        folder.mkdir(parents=True)
        content = METRICS | {"valid": valid, "novel": 0.5, "reference": f"{folder.parent.name}<b>"}
        (folder / "metrics.json").write_text(json.dumps(content))
    return found


def make_config(*inputs: Path, **more):
    overrides = [f"inputs=[{','.join(map(str, inputs))}]", *(f"{k}={v}" for k, v in more.items())]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("compare_generated", overrides=overrides)


def test_two_folders(folders, tmp_path, capsys):
    compare_files(make_config(*folders))
    folder = tmp_path / "a" / "compare_generated"
    table = pd.read_csv(folder / "compare.csv", index_col="figure", keep_default_na=False)
    values = table.loc["valid", ["a/eval", "b/eval_high", "best"]].astype(str)
    assert values.tolist() == ["0.8", "0.9", "b/eval"]
    assert table.loc["novel", ["best", "settings_that_differ"]].tolist() == ["", "reference"]
    page = (folder / "compare.html").read_text()
    data = json.loads(page.split('type="application/json">')[1].split("</script>")[0])
    assert data["names"] == ["a/eval", "b/eval"]
    assert data["differing"] == {"reference": ["a<b>", "b<b>"]}
    assert "<b>" not in page.split('id="data"')[1].split("</script>")[0]
    assert "http" not in page.replace("http-equiv", "")
    printed = capsys.readouterr().out
    assert "80.00 ± 10.00 %" in printed
    assert "novel †" in printed
    assert "settings that differ" in printed


def test_errors(folders, tmp_path):
    for inputs in ([folders[0]], []):
        with pytest.raises(UserError, match="is not several folders"):
            compare_files(make_config(*inputs))
    with pytest.raises(UserError, match="twice"):
        compare_files(make_config(folders[0], folders[0]))
    with pytest.raises(DataError, match=r"nowhere has no metrics\.json"):
        compare_files(make_config(folders[0], tmp_path / "nowhere"))
    (folders[1] / "metrics.json").write_text("{")
    with pytest.raises(DataError, match=r"metrics\.json is not valid JSON"):
        compare_files(make_config(*folders))
    (folders[1] / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match=r"is not the metrics\.json of an evaluation"):
        compare_files(make_config(*folders))
    assert not (tmp_path / "a" / "compare_generated").exists()
