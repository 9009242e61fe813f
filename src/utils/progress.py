"""Titles of progress bars."""


def title_of(progress: bool | str, default: str = "matching") -> str:
    """The title of a bar, for an argument that asks for a bar and may name it."""
    return progress if isinstance(progress, str) else default
