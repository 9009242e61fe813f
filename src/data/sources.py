"""Download known data sets, resume interrupted downloads, and verify files.

A file is moved into place only after it has been verified. Until then it is in the folder
`.download` of the data set, with the suffix `.part`. A later attempt, by this or another process,
resumes it there.
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

TIMEOUT = 30.0  # seconds to wait for a connection, and for data
ATTEMPTS = 5  # give up after this many consecutive attempts without any data
BACKOFF = 1.0  # seconds before the second attempt; doubled for each further one
MAX_WAIT = 60.0  # seconds; also limits what a server asks for
CHUNK = 2**16  # bytes

_PARTS_FOLDER = ".download"


class SourceError(DataError):
    """A data set cannot be downloaded. The message has the address, the path and what to do."""


def download(
    name: str, data_dir: str | Path, base_url: str | None = None, progress: bool = True
) -> list[str]:
    """Download the missing files of a known data set.

    Existing files are used as they are. If one differs from the published file, a warning is
    logged. Can be called by several processes at once: one downloads while the others wait.

    Args:
        name: one of `KNOWN_SETS`.
        data_dir: the folder of the data set, in which `{train,val,test}.csv` are placed.
        base_url: a mirror to use instead of the published address: `http://...`, `https://...`,
            `file://...` or a folder. It must have the files in a folder called `name`.
        progress: show a progress bar.

    Returns:
        The names of the downloaded files.

    Raises:
        SourceError: if there is no such data set, or a file cannot be downloaded or does not match
            its checksum. Such a file is removed.
        DataError: if several existing files could be the same split.
        OSError: if the folder cannot be written.
    """
    if name not in KNOWN_SETS:
        raise SourceError(
            f"{name!r} is not a known data set: choose one of {', '.join(KNOWN_SETS)}"
        )
    known_set, data_dir = KNOWN_SETS[name], Path(data_dir).expanduser()
    for path in _modified_files(known_set, data_dir):
        log.warning("%s differs from the published file of %s, but is used anyway", path, name)
    if not _missing_files(known_set, data_dir):
        return []
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f"{_PARTS_FOLDER}.lock"):
        missing = _missing_files(known_set, data_dir)  # another process may have downloaded them
        parts_folder = data_dir / _PARTS_FOLDER
        parts_folder.mkdir(exist_ok=True)
        try:
            for file in missing:
                mirror_path = f"{name}/{file}"
                url = known_set.base_url + file
                if base_url:
                    url = f"{base_url.rstrip('/')}/{mirror_path}"
                downloader = _Downloader(
                    known_set.files[file], data_dir / file, mirror_path, progress
                )
                _provide(url, downloader, parts_folder)
        finally:
            with suppress(OSError):  # not empty: it contains a part to resume from
                parts_folder.rmdir()
    if missing:
        log.info(
            "%s is in %s. License: %s. Cite: %s.", name, data_dir, known_set.license, known_set.cite
        )
    return missing


def needs_download(name: str, data_dir: Path) -> bool:
    """Whether files of a known data set are missing in a folder that belongs to it.

    A folder that contains anything other than published files of the data set is treated as the
    user's own, and nothing must be added to it. The same applies to a path that is a file.
    """
    known_set = KNOWN_SETS[name]
    if data_dir.is_file() or not _missing_files(known_set, data_dir):
        return False
    visible = [path for path in data_dir.glob("*") if not path.name.startswith(".")]
    known = {each for file in known_set.files for each in (file, f"{file}.gz")}
    return all(path.name in known for path in visible) and not _modified_files(known_set, data_dir)


def _missing_files(known_set: KnownSet, data_dir: Path) -> list[str]:
    """The files to download. An archive is not missing if it has been unpacked."""
    existing = find_splits(data_dir)
    if not _is_archive(known_set):
        return [file for file in known_set.files if Path(file).stem not in existing]
    return [] if "train" in existing else list(known_set.files)


def _is_archive(known_set: KnownSet) -> bool:
    return all(file.endswith(".zip") for file in known_set.files)


def _modified_files(known_set: KnownSet, data_dir: Path) -> list[Path]:
    """Existing files that take the place of published ones but have other content."""
    existing = find_splits(data_dir)
    return [
        path
        for file, checksum in known_set.files.items()
        if (path := existing.get(Path(file).stem, data_dir / file)).exists()
        and not _has_checksum(path, checksum)
    ]


def _has_checksum(path: Path, checksum: Checksum) -> bool:
    try:
        if checksum.sha256 is None:
            return git_blob_sha1(path) == checksum.git_blob_sha1
        return path.stat().st_size == checksum.size and sha256_of(path) == checksum.sha256
    except (OSError, EOFError, zlib.error):  # a damaged .gz
        return False


def _provide(url: str, downloader: "_Downloader", parts_folder: Path) -> None:
    """Download a file and move it, or the tables in it if it is an archive, into place."""
    target = downloader.target
    if target.suffix == ".zip" and target.is_file():  # put there by the user
        _unpack(target, target.parent, parts_folder)
        return
    pooch.get_logger().setLevel(logging.WARNING)
    # pooch does not know git blob hashes. The downloader verifies both kinds of checksum
    sha256 = downloader.checksum.sha256
    known_hash = f"sha256:{sha256}" if sha256 else None
    path = Path(pooch.retrieve(url, known_hash, target.name, parts_folder, downloader=downloader))
    if target.suffix == ".zip":
        _unpack(path, target.parent, parts_folder)
        path.unlink()
    else:
        path.replace(target)


class _Downloader:
    """A downloader for pooch that resumes partial files and verifies the result.

    Args:
        checksum: published checksum of the file.
        target: final path of the file, for messages and the name of the part.
        mirror_path: path of the file on a mirror, for messages.
        progress: show a progress bar.
    """

    def __init__(self, checksum: Checksum, target: Path, mirror_path: str, progress: bool) -> None:
        self.checksum = checksum
        self.target = target
        self.mirror_path = mirror_path
        self.progress = progress

    def __call__(self, url: str, output_file: str, pooch: Any) -> None:
        part = Path(output_file).with_name(f"{self.target.name}.part")
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                   TransferSpeedColumn(), TimeRemainingColumn())  # fmt: skip
        try:
            with Progress(*columns, transient=True, disable=not self.progress) as bar:
                if not self._download_and_verify(url, part, bar):
                    self._download_and_verify(url, part, bar, is_retry=True)
        except requests.RequestException as error:
            raise SourceError(self._error_message(url, _describe(error))) from error
        part.replace(output_file)

    def _download_and_verify(
        self, url: str, part: Path, bar: Progress, is_retry: bool = False
    ) -> bool:
        """Complete the partial file and verify it.

        Returns:
            Whether the file is correct. If not, it has to be downloaded again from the start,
            because it was resumed, and the first part may have been of another file.

        Raises:
            SourceError: if the file is not correct, and downloading it again would not help.
        """
        task = bar.add_task(self.target.name, total=self.checksum.size)
        if (local := _local_path(url)) is not None:
            try:
                shutil.copyfile(local, part)
            except OSError as error:
                part.unlink(missing_ok=True)
                raise SourceError(self._error_message(url, str(error))) from error
            resumed = False
        else:
            resumed = _download_with_retries(url, part, bar, task)
        if _has_checksum(part, self.checksum):
            return True
        size = part.stat().st_size
        part.unlink()
        bar.remove_task(task)
        if resumed and not is_retry:
            log.warning("The resumed download of %s is damaged; starting again", url)
            return False
        reason = f"its {size:,} bytes do not have the published checksum, so they were removed"
        raise SourceError(self._error_message(url, reason))

    def _error_message(self, url: str, reason: str) -> str:
        return (
            f"Cannot download {url} to {self.target}: {reason}.\nIf there is no network or the "
            "address is not reachable, use a mirror with data.base_url=ADDRESS (--base-url of "
            "scripts/download_data.py; http://, https://, file:// or a folder) that has "
            f"{self.mirror_path}, or put the file at {self.target} yourself."
        )


def _download_with_retries(url: str, part: Path, bar: Progress, task: Any) -> bool:
    """Complete the partial file, with new attempts if the connection fails.

    Returns:
        Whether it was downloaded in more than one piece.

    Raises:
        requests.RequestException: if an error is permanent, or if `ATTEMPTS` consecutive attempts
            received no data.
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
            if failures >= ATTEMPTS or not _is_temporary(error):
                raise
            resumed = True
            seconds = _delay(error, failures)
            log.warning("%s: %s; trying again in %.3g s", url, _describe(error), seconds)
            time.sleep(seconds)


def _transfer(url: str, part: Path, bar: Progress, task: Any) -> None:
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # uncompressed, so that a part can be resumed
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if start and response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # the part is complete, or of another file; its checksum decides
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            start = 0  # the server does not support ranges and sends the whole file
        if (length := response.headers.get("Content-Length", "")).isdigit():
            bar.update(task, total=start + int(length))
        bar.update(task, completed=start)
        with part.open("ab" if start else "wb") as file:
            for content in response.iter_content(CHUNK):
                file.write(content)
                bar.advance(task, len(content))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_temporary(error: requests.RequestException) -> bool:
    """Whether the same request may succeed later."""
    if error.response is not None:
        return error.response.status_code in (408, 425, 429) or error.response.status_code >= 500
    temporary = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
    )
    return isinstance(error, temporary) and not isinstance(error, requests.exceptions.SSLError)


def _delay(error: requests.RequestException, failures: int) -> float:
    """Seconds to wait before the next attempt: what the server asks for, else a growing delay."""
    asked = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return min(MAX_WAIT, float(asked) if asked.isdigit() else BACKOFF * 2 ** (failures - 1))


def _describe(error: requests.RequestException) -> str:
    """A short description of an error, taken from the urllib3 error that requests wraps."""
    if error.response is not None:
        return f"the server says {error.response.status_code} {error.response.reason}"
    inner = error.args[0] if error.args else error
    if isinstance(error, requests.Timeout) or isinstance(inner, ReadTimeoutError):
        return f"no answer within {TIMEOUT:g} s"
    inner = getattr(inner, "reason", inner)
    return str(inner.args[0] if isinstance(inner, Exception) and inner.args else inner)


def _local_path(url: str) -> Path | None:
    """The path that an address refers to, or None if it is not on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return None if "://" in url else Path(url).expanduser()


def _unpack(archive: Path, data_dir: Path, parts_folder: Path) -> None:
    """Extract `{train,val,test}.csv`, at any depth in an archive, into a folder.

    Nothing else is extracted, and paths in the archive are not used as paths on disk. Existing
    splits are not overwritten.

    Raises:
        SourceError: if the archive is damaged, has no `train.csv`, or has several tables for a
            split.
    """
    log.info("Unpacking %s", archive)
    unpacked = {split: parts_folder / f"{split}.csv" for split in SPLITS}
    try:
        with ZipFile(archive) as file:
            tables = _find_tables(archive, file)
            for split, member in tables.items():
                with file.open(member) as content, unpacked[split].open("wb") as out:
                    shutil.copyfileobj(content, out, 2**20)
        existing = find_splits(data_dir)
        for split in reversed(SPLITS):  # train last: it marks the set as complete (_missing_files)
            if split in tables and split not in existing:
                unpacked[split].replace(data_dir / f"{split}.csv")
    except (BadZipFile, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise SourceError(f"{archive} is not a readable zip archive, remove it: {error}") from error
    finally:
        for path in unpacked.values():
            path.unlink(missing_ok=True)


def _find_tables(archive: Path, file: ZipFile) -> dict[str, ZipInfo]:
    found: dict[str, ZipInfo] = {}
    for member in file.infolist():
        path = PurePosixPath(member.filename)
        if path.suffix != ".csv" or path.stem not in SPLITS:
            continue
        if path.stem in found:
            raise SourceError(
                f"{archive} contains both {found[path.stem].filename} and {path}: remove one"
            )
        found[path.stem] = member
    if "train" not in found:
        raise SourceError(f"{archive} does not contain train.csv")
    return found
