"""Compute checksums of files."""

import gzip
import hashlib
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob_sha1(path: str | Path) -> str:
    """SHA-1 that git computes for the content of a file; for a `.gz` file, of the unpacked content.

    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
    """
    path = Path(path).expanduser()
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:  # read twice, because the size is hashed first
        size = sum(len(part) for part in iter(lambda: file.read(2**20), b""))
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with opened(path, "rb") as file:
        for part in iter(lambda: file.read(2**20), b""):
            digest.update(part)
    return digest.hexdigest()
