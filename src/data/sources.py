"""Fetch known data sets: resumed where they were cut off, and in place only when verified.

What has come so far lies in the folder `.download` of the data set's folder, in files that end in
`.part`; it is there that a later attempt, of this process or of another, goes on.
"""

import logging
import shutil
import time
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname
from zipfile import BadZipFile, ZipFile, ZipInfo

import pooch
import requests
from filelock import FileLock
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from urllib3.exceptions import ReadTimeoutError

from src.data.known_sets import KNOWN_SETS, Checksum, KnownSet
from src.data.readers import SPLITS, DataError
from src.data.split_files import find_splits
from src.utils.checksum import git_blob_sha1, sha256_of

log = logging.getLogger(__name__)

TIMEOUT = 30.0  # seconds without a connection, or without a byte
ATTEMPTS = 5  # in a row that bring nothing
BACKOFF = 1.0  # seconds before the second attempt; they double
MAX_WAIT = 60.0  # seconds, whatever a server asks for
CHUNK = 2**16  # bytes

_WORK = ".download"


class SourceError(DataError):
    """A data set that cannot be fetched; the message names address and file and says what to do."""


def download(
    name: str, data_dir: str | Path, base_url: str | None = None, progress: bool = True
) -> list[str]:
    """Fetch what is missing of a known data set.

    Files that are there are used as they are: a table that is not the published one is someone's
    own version, which a warning says. Safe to call from many processes at once: one fetches, the
    others wait.

    Args:
        name: one of `KNOWN_SETS`.
        data_dir: the set's own folder, which gets `{train,val,test}.csv`.
        base_url: instead of the published address, that of a mirror: `http://...`, `https://...`,
            `file://...` or a folder, where the files lie in a folder `name`.
        progress: show it.

    Returns:
        The names of the files that were fetched.

    Raises:
        SourceError: if there is no such set, or a file of it cannot be had, or is not what was
            published. Such a file is not left there.
        DataError: if two files there could be the same split.
        OSError: if the folder cannot be written.
    """
    if name not in KNOWN_SETS:
        raise SourceError(f"{name!r} is no known data set; those are {', '.join(KNOWN_SETS)}")
    source, data_dir = KNOWN_SETS[name], Path(data_dir).expanduser()
    for path in _own_versions(source, data_dir):
        log.warning("%s is not the file that is published as %s: it is used as it is", path, name)
    if not _missing(source, data_dir):
        return []
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f"{_WORK}.lock"):
        missing = _missing(source, data_dir)  # again, since another process may have been here
        work = data_dir / _WORK
        work.mkdir(exist_ok=True)
        try:
            for file in missing:
                mirrored = f"{name}/{file}"
                url = f"{base_url.rstrip('/')}/{mirrored}" if base_url else source.base_url + file
                fetch = _Fetch(source.files[file], data_dir / file, mirrored, progress)
                _place(url, fetch, work)
        finally:
            with suppress(OSError):  # there is a part in it, to go on from
                work.rmdir()
    if missing:
        log.info("%s is in %s. Licence: %s. Cite: %s.", name, data_dir, source.licence, source.cite)
    return missing


def lacks_files(name: str, data_dir: Path) -> bool:
    """Whether `download` would complete a folder that is the known set's own.

    It is not where it holds anything but published files of the set, or is a file: then it is
    someone else's, to which nothing is to be added.
    """
    source = KNOWN_SETS[name]
    if data_dir.is_file() or not _missing(source, data_dir):
        return False
    visible = [path for path in data_dir.glob("*") if not path.name.startswith(".")]
    known = {each for file in source.files for each in (file, f"{file}.gz")}
    return all(path.name in known for path in visible) and not _own_versions(source, data_dir)


def _missing(source: KnownSet, data_dir: Path) -> list[str]:
    """The files to fetch; that of an archive which has been unpacked is not missing."""
    there = find_splits(data_dir)
    if not _is_archive(source):
        return [file for file in source.files if Path(file).stem not in there]
    return [] if "train" in there else list(source.files)


def _is_archive(source: KnownSet) -> bool:
    return all(file.endswith(".zip") for file in source.files)


def _own_versions(source: KnownSet, data_dir: Path) -> list[Path]:
    """What is there in the place of the set's files, and is not the published one."""
    there = find_splits(data_dir)
    return [
        path
        for file, checksum in source.files.items()
        if (path := there.get(Path(file).stem, data_dir / file)).exists()
        and not _matches(path, checksum)
    ]


def _matches(path: Path, checksum: Checksum) -> bool:
    try:
        if checksum.sha256 is None:
            return git_blob_sha1(path) == checksum.git_blob_sha1
        return path.stat().st_size == checksum.size and sha256_of(path) == checksum.sha256
    except (OSError, EOFError, zlib.error):  # a damaged .gz
        return False


def _place(url: str, fetch: "_Fetch", work: Path) -> None:
    """Bring a file to where it is to be, or, of an archive, its tables."""
    target = fetch.target
    if target.suffix == ".zip" and target.is_file():  # someone has put it there
        _unpack(target, target.parent, work)
        return
    pooch.get_logger().setLevel(logging.WARNING)
    sha256 = fetch.checksum.sha256  # git's are none that pooch knows; `fetch` verifies either
    known = f"sha256:{sha256}" if sha256 else None
    path = Path(pooch.retrieve(url, known, target.name, work, downloader=fetch))
    if target.suffix == ".zip":
        _unpack(path, target.parent, work)
        path.unlink()
    else:
        path.replace(target)


class _Fetch:
    """What pooch calls to bring a file: one that goes on from a part of it, and verifies it.

    Args:
        target: where the file is to be in the end.
        mirrored: where a mirror has it.
    """

    def __init__(self, checksum: Checksum, target: Path, mirrored: str, progress: bool) -> None:
        self.checksum = checksum
        self.target = target
        self.mirrored = mirrored
        self.progress = progress

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        part = Path(output_file).with_name(f"{self.target.name}.part")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                   TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
        try:
            with Progress(*columns, transient=True, disable=not self.progress) as bar:
                if not self._bring(url, part, bar):
                    self._bring(url, part, bar, once_more=True)
        except requests.RequestException as error:
            raise SourceError(self._explain(url, _reason(error))) from error
        part.replace(output_file)

    def _bring(self, url: str, part: Path, bar: Progress, once_more: bool = False) -> bool:
        """Complete the part; whether that is the file, or is to be tried once more from its start.

        Raises:
            SourceError: if it is not the file, whole as it came.
        """
        task = bar.add_task(self.target.name, total=self.checksum.size)
        if (local := _local_path(url)) is not None:
            try:
                shutil.copyfile(local, part)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise SourceError(self._explain(url, str(error))) from error
            resumed = False
        else:
            resumed = _complete(url, part, bar, task)
        if _matches(part, self.checksum):
            return True
        size = part.stat().st_size
        part.unlink()
        bar.remove_task(task)
        if resumed and not once_more:  # the first part may have been of another file
            log.warning("%s was put together of parts that do not fit: once more", url)
            return False
        reason = f"its {size:,} bytes do not have the published checksum, so they were removed"
        raise SourceError(self._explain(url, reason))

    def _explain(self, url: str, reason: str) -> str:
        return (
            f"Cannot download {url} to {self.target}: {reason}.\nWithout a network, or where the "
            "address does not answer: name a mirror with data.base_url=ADDRESS (--base-url of "
            "scripts/download_data.py; http://, https://, file:// or a folder) which has "
            f"{self.mirrored}, or put the file at {self.target} yourself."
        )


def _complete(url: str, part: Path, bar: Progress, task: Any) -> bool:
    """Bring `part` to its end, over connections that break.

    Returns:
        Whether it came in more than one piece.

    Raises:
        requests.RequestException: if an attempt fails in a way that will not pass, or `ATTEMPTS`
            of them in a row bring nothing.
    """
    resumed = part.exists()
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, bar, task)
            return resumed
        except requests.RequestException as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures >= ATTEMPTS or not _may_pass(error):
                raise
            resumed = True
            seconds = _wait(error, failures)
            log.warning("%s: %s; again in %.3g s", url, _reason(error), seconds)
            time.sleep(seconds)


def _transfer(url: str, part: Path, bar: Progress, task: Any) -> None:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # so that bytes are those of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the part is whole, or of another file: its checksum will tell
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0  # this server sends all of it or nothing
        if (length := response.headers.get("Content-Length", "")).isdigit():
            bar.update(task, total=start + int(length))
        bar.update(task, completed=start)
        with part.open("ab" if start else "wb") as file:
            for content in response.iter_content(CHUNK):
                file.write(content)
                bar.advance(task, len(content))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _may_pass(error: requests.RequestException) -> bool:
    """Whether the same request may succeed later."""
    if error.response is not None:
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, passing) and not isinstance(error, requests.exceptions.SSLError)


def _wait(error: requests.RequestException, failures: int) -> float:
    """Seconds before the next attempt: as long as the server asks for, if it does."""
    asked = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return min(MAX_WAIT, float(asked) if asked.isdigit() else BACKOFF * 2 ** (failures - 1))


def _reason(error: requests.RequestException) -> str:
    """An error in few words; requests wraps urllib3's, which has them, in others."""
    if error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    inner = error.args[0] if error.args else error
    if isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    inner = getattr(inner, "reason", inner)
    return str(inner.args[0] if isinstance(inner, Exception) and inner.args else inner)


def _local_path(url: str) -> Path | None:
    """The file that an address means, if it is one of this machine."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if "://" in url else Path(url).expanduser()


def _unpack(archive: Path, data_dir: Path, work: Path) -> None:
    """Put the tables of an archive, at whatever depth they lie in it, into a folder.

    Nothing else is unpacked, and nothing under a name that the archive chooses. Splits that are
    there stay.

    Raises:
        SourceError: if it is damaged, has no `train.csv`, or two tables of a split.
    """
    log.info("Unpacking %s", archive)
    unpacked = {split: work / f"{split}.csv" for split in SPLITS}
    try:
        with ZipFile(archive) as file:
            tables = _tables(archive, file)
            for split, member in tables.items():
                with file.open(member) as content, unpacked[split].open("wb") as out:
                    shutil.copyfileobj(content, out, 2**20)
        there = find_splits(data_dir)
        for split in reversed(SPLITS):  # train last: it stands for the whole, see `_missing`
            if split in tables and split not in there:
                unpacked[split].replace(data_dir / f"{split}.csv")
    except (BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{archive} is not a readable archive, remove it: {error}") from error
    finally:
        for path in unpacked.values():
            path.unlink(missing_ok=True)


def _tables(archive: Path, file: ZipFile) -> dict[str, ZipInfo]:
    found: dict[str, ZipInfo] = {}
    for member in file.infolist():
        path = PurePosixPath(member.filename)
        if path.suffix != ".csv" or path.stem not in SPLITS:
            continue
        if path.stem in found:
            raise SourceError(f"{archive} has {found[path.stem].filename} and {path}: remove one")
        found[path.stem] = member
    if "train" not in found:
        raise SourceError(f"{archive} has no train.csv in it")
    return found
