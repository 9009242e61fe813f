"""The README begins with what a new user needs first."""

from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_two_commands_come_first():
    first_screen = README.splitlines()[:12]
    assert any(line.startswith("make train") for line in first_screen)
    assert any(line.startswith("make test") for line in first_screen)
