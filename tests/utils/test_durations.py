"""Durations as people write them."""

from datetime import timedelta

import pytest

from src.utils.durations import duration, in_words
from src.utils.errors import UserError


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (60, 60), ("90", 90), (1.5, 1.5), ("5min", 300), ("8h", 28800), ("1h30m", 5400),
        ("1 day 2 hours", 93600), ("2d", 172800), ("0.5h", 1800), ("00:05:00", 300),
        ("01:00:00:10", 86410), (timedelta(minutes=1), 60),
    ],
)  # fmt: skip
def test_what_people_write(given, seconds):
    assert duration(given, "x").total_seconds() == seconds


@pytest.mark.parametrize("given", ["soon", "5 parsecs", "-3", "05:00", "", True, "1h-2m"])
def test_what_is_not_a_time(given):
    with pytest.raises(
        UserError, match=r"^trainer\.max_time=.* is not a time: write seconds, 5min"
    ):
        duration(given, "trainer.max_time")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 second"), (40.4, "40 seconds"), (485, "8 minutes"), (5400, "1.5 hours"),
        (7200, "2 hours"), (86400 * 2.5, "2.5 days"),
    ],
)  # fmt: skip
def test_in_words(seconds, words):
    assert in_words(seconds) == words
