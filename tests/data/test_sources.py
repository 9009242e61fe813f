"""Download known sets from a local server, which can be made to fail in various ways."""

import gzip
import hashlib
import io
import json
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
import yaml

from src.data import DataError, DataModule, sources
from src.data.cif import Crystal, write_cif
from src.data.known_sets import KNOWN_SETS, Checksum, KnownSet
from src.data.sources import SourceError, download
from src.data.splits import find_readers
from src.utils.checksum import git_blob_sha1

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 2**12


def make_table(start: int, num: int) -> bytes:
    crystal = Crystal(4 * np.eye(3), np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]))
    names = [f"id-{i}" for i in range(start, start + num)]
    table = pd.DataFrame({"material_id": names, "cif": [write_cif(crystal, n) for n in names]})
    return table.to_csv(index=False).encode()


TABLES = {"train.csv": make_table(0, 150), "val.csv": make_table(150, 4),
          "test.csv": make_table(154, 3)}  # fmt: skip


def make_zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


ARCHIVE = make_zip(
    {
        "set/": b"",
        "set/train.csv": TABLES["train.csv"],
        "set/val.csv": TABLES["val.csv"],
        "__MACOSX/set/._train.csv": b"junk",
        "../../outside.csv": b"junk",
        "set/README.md": b"junk",
    }
)


def blob(content: bytes) -> Checksum:
    return Checksum(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


@dataclass
class Server:
    """Serves `files` by path, and records requests. Each fault replaces the answer to one request.

    A fault is a status, `("cut", bytes)`, `("sleep", seconds)`, `("stall", seconds)` (after
    a few bytes) or `("redirect", path)`.
    """

    files: dict[str, bytes]
    faults: list = field(default_factory=list)
    ranges: bool = True
    url: str = ""
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    sent: list[int] = field(default_factory=list)  # bytes of content

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range")
        self.requests.append((handler.path, asked))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            handler.send_response(fault)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        kind, value = fault or (None, None)
        if kind == "sleep":
            time.sleep(value)
        if kind == "redirect":
            handler.send_response(302)
            handler.send_header("Location", value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        content = self.files.get(handler.path)
        if content is None:
            handler.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.ranges else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        if start:
            content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
            handler.send_header("Content-Range", content_range)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        body = content[start : start + value] if kind == "cut" else content[start:]
        self.sent.append(len(body))
        handler.wfile.write(body[:10] if kind == "stall" else body)
        if kind == "stall":
            handler.wfile.flush()
            time.sleep(value)
        handler.close_connection = True


@contextmanager
def serving(server: Server):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.handle_error = lambda *args: None  # the client has disconnected
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


@pytest.fixture
def server():
    files = {f"/toy/{name}": content for name, content in TABLES.items()}
    with serving(Server({**files, "/toy_zip/toy.zip": ARCHIVE})) as server:
        yield server


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Two small known sets, and short timeouts."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    known = {
        "toy": KnownSet("http://127.0.0.1:9/", {n: blob(c) for n, c in TABLES.items()},
                        "CC0", "Someone 2020"),
        "toy_zip": KnownSet(
            "http://127.0.0.1:9/",
            {"toy.zip": Checksum(sha256=hashlib.sha256(ARCHIVE).hexdigest(), size=len(ARCHIVE))},
            "CC0", "Someone 2020"),
    }  # fmt: skip
    for name, source in known.items():
        monkeypatch.setitem(KNOWN_SETS, name, source)
    monkeypatch.setattr(sources, "TIMEOUT", 5.0)
    monkeypatch.setattr(sources, "BACKOFF", 0.01)
    monkeypatch.setattr(sources, "CHUNK", CHUNK)


def files_below(folder: Path) -> dict[str, bytes]:
    """All files below a folder, except locks."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# --- the table of sets -----------------------------------------------------------------------


def test_every_file_has_a_checksum_and_an_address_at_a_commit():
    real = {name: source for name, source in KNOWN_SETS.items() if not name.startswith("toy")}
    assert list(real) == ["mp_20", "perov_5", "carbon_24", "mpts_52", "alex_mp_20"]
    for source in real.values():
        assert re.fullmatch(r"https://.*/[0-9a-f]{40}/.*/", source.base_url)
        for file, checksum in source.files.items():
            if file.endswith(".zip"):
                assert re.fullmatch("[0-9a-f]{64}", checksum.sha256)
                assert checksum.size > 10**8
            else:
                assert re.fullmatch("[0-9a-f]{40}", checksum.git_blob_sha1)
    assert sum(KNOWN_SETS["mp_20"].crystals.values()) == 45_229


def test_the_page_and_the_configs_list_the_same_sets():
    page = (ROOT / "docs" / "data" / "known_sets.md").read_text()
    for name, source in KNOWN_SETS.items():
        if name.startswith("toy"):
            continue
        config = yaml.safe_load((ROOT / "configs" / "data" / f"{name}.yaml").read_text())
        assert (config["source"], config["download"]) == (name, True)
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
        counts = [f"{source.crystals[s]:,}" for s in sources.SPLITS if s in source.crystals]
        assert re.findall(r"\d+,\d{3}", row.split("|")[2]) == counts
        assert re.findall(r"up to (\d+)", row) == [str(config["max_num_atoms"])]
        assert row.endswith(f"| {source.license} | {source.cite} |")


def test_the_checksum_agrees_with_git(tmp_path):
    (tmp_path / "file").write_bytes(b"hello\n")  # expected: output of `git hash-object`
    assert git_blob_sha1(tmp_path / "file") == "ce013625030ba8dba906f756967f9e9ca394464a"
    (tmp_path / "file.gz").write_bytes(gzip.compress(b"hello\n"))
    assert git_blob_sha1(tmp_path / "file.gz") == "ce013625030ba8dba906f756967f9e9ca394464a"


# --- a server without faults -----------------------------------------------------------------


def test_complete_download(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert download("toy", tmp_path / "a" / "toy", server.url) == list(TABLES)
    assert files_below(tmp_path / "a" / "toy") == TABLES
    assert server.requests == [(f"/toy/{name}", None) for name in TABLES]
    assert caplog.text.count("License: CC0. Cite: Someone 2020.") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert download("toy", tmp_path / "a" / "toy", server.url) == []
    assert len(server.requests) == 3
    assert caplog.text == ""


def test_the_published_address(server, tmp_path, monkeypatch):
    published = KnownSet(f"{server.url}/toy/", KNOWN_SETS["toy"].files, "", "")
    monkeypatch.setitem(KNOWN_SETS, "toy", published)
    download("toy", tmp_path)
    assert files_below(tmp_path) == TABLES


def test_redirected(server, tmp_path):
    server.files["/moved"] = server.files.pop("/toy/train.csv")
    server.faults = [("redirect", "/moved")]
    download("toy", tmp_path, server.url)
    assert files_below(tmp_path) == TABLES


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_folder_as_mirror(tmp_path, scheme):
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    for name, content in TABLES.items():
        (tmp_path / "mirror" / "toy" / name).write_bytes(content)
    download("toy", tmp_path / "toy", f"{scheme}{tmp_path}/mirror")
    assert files_below(tmp_path / "toy") == TABLES
    with pytest.raises(SourceError, match=r"No such file .*toy\.zip"):
        download("toy_zip", tmp_path / "toy_zip", f"{scheme}{tmp_path}/mirror")
    assert files_below(tmp_path / "toy_zip") == {}


def test_an_unknown_set(tmp_path):
    with pytest.raises(
        SourceError, match="'mp_21' is not a known data set: choose one of mp_20, perov_5"
    ):
        download("mp_21", tmp_path)


# --- broken connections ----------------------------------------------------------------------


def test_interrupted_and_resumed(server, tmp_path, caplog):
    whole = len(TABLES["train.csv"])
    server.faults = [("cut", 10_000), ("cut", 5_000)]
    download("toy", tmp_path, server.url)
    assert files_below(tmp_path) == TABLES
    # of each piece, the complete chunks are kept
    first = 10_000 // CHUNK * CHUNK
    second = first + 5_000 // CHUNK * CHUNK
    assert [asked for _, asked in server.requests[:3]] == [
        None, f"bytes={first}-", f"bytes={second}-",
    ]  # fmt: skip
    assert server.sent[:3] == [10_000, 5_000, whole - second]
    assert caplog.text.count("trying again in 0.01 s") == 2


def test_a_later_attempt_resumes(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ATTEMPTS", 1)
    server.faults = [("cut", 10_000)]
    with pytest.raises(SourceError, match="Connection broken"):
        download("toy", tmp_path, server.url)
    begun = 10_000 // CHUNK * CHUNK
    assert files_below(tmp_path) == {".download/train.csv.part": TABLES["train.csv"][:begun]}
    download("toy", tmp_path, server.url)
    assert server.requests[1] == ("/toy/train.csv", f"bytes={begun}-")
    assert server.sent[1] == len(TABLES["train.csv"]) - begun
    assert files_below(tmp_path) == TABLES
    assert not (tmp_path / ".download").exists()


def test_a_server_without_support_for_ranges(server, tmp_path):
    server.ranges = False
    server.faults = [("cut", 10_000)]
    download("toy", tmp_path, server.url)
    assert server.requests[1][1] == f"bytes={10_000 // CHUNK * CHUNK}-"
    assert server.sent[:2] == [10_000, len(TABLES["train.csv"])]
    assert files_below(tmp_path) == TABLES


def put_part(folder: Path, content: bytes) -> None:
    (folder / ".download").mkdir(parents=True)
    (folder / ".download" / "train.csv.part").write_bytes(content)


@pytest.mark.parametrize(
    ("part", "requests"),
    [
        (b"of another file", 2),
        (b"longer than the file" * 10_000, 2),  # the server rejects the range
        (TABLES["train.csv"], 1),  # here too, but the part is complete
    ],
)
def test_a_part_left_from_before(server, tmp_path, part, requests):
    put_part(tmp_path, part)
    download("toy", tmp_path, server.url)
    assert files_below(tmp_path) == TABLES
    asked = [each for path, each in server.requests if path == "/toy/train.csv"]
    assert asked == [f"bytes={len(part)}-", None][:requests]


@pytest.mark.parametrize("kind", ["sleep", "stall"])
def test_slow(server, tmp_path, monkeypatch, caplog, kind):
    monkeypatch.setattr(sources, "TIMEOUT", 0.3)
    server.faults = [(kind, 1.0)]
    download("toy", tmp_path, server.url)
    assert files_below(tmp_path) == TABLES
    assert "no answer within 0.3 s" in caplog.text
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_is_busy(server, tmp_path, status):
    server.faults = [status, status]
    download("toy", tmp_path, server.url)
    assert files_below(tmp_path) == TABLES
    assert len(server.requests) == 5


def test_the_delay_the_server_asks_for():
    response = requests.Response()
    response.status_code = 429
    waits = []
    for value in ("7", "100000", "tomorrow"):
        response.headers["Retry-After"] = value
        waits.append(sources._delay(requests.HTTPError(response=response), 3))
    assert waits == [7.0, sources.MAX_WAIT, 4 * sources.BACKOFF]


# --- files that cannot be downloaded ---------------------------------------------------------


def assert_says_what_to_do(message: str, url: str, target: Path) -> None:
    assert url in message
    assert f"put the file at {target} yourself" in message
    assert "data.base_url=ADDRESS" in message
    assert "--base-url" in message


def test_corrupted(server, tmp_path):
    content = bytearray(TABLES["val.csv"])
    content[len(content) // 2] ^= 1
    server.files["/toy/val.csv"] = bytes(content)
    with pytest.raises(SourceError, match="published checksum, so they were removed") as error:
        download("toy", tmp_path, server.url)
    assert_says_what_to_do(str(error.value), f"{server.url}/toy/val.csv", tmp_path / "val.csv")
    assert files_below(tmp_path) == {"train.csv": TABLES["train.csv"]}
    assert not (tmp_path / ".download").exists()
    assert len(server.requests) == 2
    server.files["/toy/val.csv"] = TABLES["val.csv"]
    assert download("toy", tmp_path, server.url) == ["val.csv", "test.csv"]
    assert files_below(tmp_path) == TABLES


def test_a_corrupted_file_in_pieces_is_downloaded_twice(server, tmp_path):
    server.files["/toy/train.csv"] = b"x" * 3 * CHUNK
    server.faults += [("cut", CHUNK), None] * 3
    with pytest.raises(SourceError, match="do not have the published checksum"):
        download("toy", tmp_path, server.url)
    assert len(server.requests) == 4
    assert files_below(tmp_path) == {}


def test_a_corrupted_archive(server, tmp_path):
    server.files["/toy_zip/toy.zip"] = ARCHIVE[:-1] + b"x"
    with pytest.raises(SourceError, match="do not have the published checksum"):
        download("toy_zip", tmp_path, server.url)
    assert files_below(tmp_path) == {}


@pytest.mark.parametrize("status", [404, 403])
def test_a_missing_file(server, tmp_path, status):
    server.faults = [status]
    with pytest.raises(SourceError, match=f"the server says {status}") as error:
        download("toy", tmp_path, server.url)
    assert_says_what_to_do(str(error.value), f"{server.url}/toy/train.csv", tmp_path / "train.csv")
    assert len(server.requests) == 1  # no second attempt
    assert files_below(tmp_path) == {}


def test_offline(tmp_path, caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(SourceError, match="Connection refused") as error:
            download("toy", tmp_path / "toy", url)
    target = tmp_path / "toy" / "train.csv"
    assert_says_what_to_do(str(error.value), f"{url}/toy/train.csv", target)
    assert caplog.text.count("trying again in") == sources.ATTEMPTS - 1
    assert files_below(tmp_path) == {}


def test_an_invalid_address(tmp_path):
    with pytest.raises(SourceError, match="No connection adapters were found for 'gopher://x/toy"):
        download("toy", tmp_path, "gopher://x")


# --- files put there by the user -------------------------------------------------------------


def test_files_put_there_by_the_user(server, tmp_path, caplog):
    (tmp_path / "train.csv").write_bytes(TABLES["train.csv"])
    (tmp_path / "val.csv.gz").write_bytes(gzip.compress(TABLES["val.csv"]))
    assert download("toy", tmp_path, server.url) == ["test.csv"]
    assert [path for path, _ in server.requests] == ["/toy/test.csv"]
    assert "differs from the published file" not in caplog.text


def test_a_modified_file_is_used_with_a_warning(server, tmp_path, caplog):
    own = {"train.csv": b"mine", "val.csv.gz": gzip.compress(b"mine"), "test.csv.gz": b"damaged"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    assert download("toy", tmp_path, server.url) == []
    for name in own:
        text = f"{tmp_path / name} differs from the published file of toy, but is used anyway"
        assert text in caplog.text
    assert files_below(tmp_path) == own
    assert server.requests == []


# --- archives --------------------------------------------------------------------------------


def test_an_archive_is_unpacked(server, tmp_path):
    folder = tmp_path / "deep" / "toy_zip"
    assert download("toy_zip", folder, server.url) == ["toy.zip"]
    assert files_below(tmp_path / "deep") == {
        "toy_zip/train.csv": TABLES["train.csv"], "toy_zip/val.csv": TABLES["val.csv"],
    }  # fmt: skip
    assert download("toy_zip", folder, server.url) == []
    assert len(server.requests) == 1


def test_an_archive_put_there_by_the_user(server, tmp_path):
    (tmp_path / "toy.zip").write_bytes(ARCHIVE)
    (tmp_path / "val.csv").write_bytes(b"mine")
    download("toy_zip", tmp_path, server.url)
    assert server.requests == []
    expected = {"toy.zip": ARCHIVE, "train.csv": TABLES["train.csv"], "val.csv": b"mine"}
    assert files_below(tmp_path) == expected


def test_an_archive_does_not_choose_where_its_tables_go(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    archive = make_zip({"../../train.csv": b"1", "/val.csv": b"2", "../test.csv": b"3"})
    (folder / "toy.zip").write_bytes(archive)
    download("toy_zip", folder)
    assert files_below(tmp_path).keys() == {f"a/b/{name}" for name in ("toy.zip", *TABLES)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "is not a readable zip archive, remove it"),
        (ARCHIVE[:200] + b"x" * 20 + ARCHIVE[220:], "is not a readable zip archive, remove it"),
        (make_zip({"a/val.csv": b""}), r"does not contain train\.csv"),
        (
            make_zip({"a/train.csv": b"", "b/train.csv": b""}),
            r"contains both a/train\.csv and b/train\.csv",
        ),
    ],
)
def test_an_archive_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "toy.zip").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        download("toy_zip", tmp_path)
    assert files_below(tmp_path) == {"toy.zip": content}


# --- many processes --------------------------------------------------------------------------


FETCH = """
import json, sys
from src.data import sources
from src.data.known_sets import Checksum, KnownSet
sums, data_dir, url = json.loads(sys.argv[1]), *sys.argv[2:]
files = {name: Checksum(value) for name, value in sums.items()}
sources.KNOWN_SETS["toy"] = KnownSet("", files, "", "")
print("ready", flush=True)
sys.stdin.readline()
print(sources.download("toy", data_dir, url, progress=False))
"""


def test_processes_that_start_at_once_download_once(server, tmp_path):
    server.faults = [("sleep", 0.5)]  # so that the others have to wait
    sums = {name: checksum.git_blob_sha1 for name, checksum in KNOWN_SETS["toy"].files.items()}
    command = [sys.executable, "-c", FETCH, json.dumps(sums), str(tmp_path), server.url]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0] for process in processes]
    assert sorted(answers, key=len) == ["[]\n", "[]\n", f"{list(TABLES)}\n"]
    assert files_below(tmp_path) == TABLES
    assert [path for path, _ in server.requests] == [f"/toy/{name}" for name in TABLES]


# --- with a DataModule -----------------------------------------------------------------------


@pytest.fixture
def options(server, tmp_path):
    return {"source": "toy", "download": True, "base_url": server.url,
            "cache_dir": tmp_path / "cache"}  # fmt: skip


def test_a_missing_folder_is_downloaded(server, tmp_path, options):
    DataModule(tmp_path / "toy", **options).prepare_data()
    assert files_below(tmp_path / "toy") == TABLES
    data = DataModule(tmp_path / "toy", **{**options, "base_url": None})
    data.prepare_data()
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [150, 4, 3]
    assert len(server.requests) == 3


def test_reading_a_split_downloads_too(tmp_path, options):
    assert len(DataModule(tmp_path / "toy", **options).dataset("test")) == 3


def test_an_incomplete_folder_is_completed(server, tmp_path, options):
    server.faults = [None, 404]
    with pytest.raises(SourceError, match="404"):
        DataModule(tmp_path / "toy", **options).prepare_data()
    assert list(files_below(tmp_path / "toy")) == ["train.csv"]
    DataModule(tmp_path / "toy", **options).prepare_data()
    assert files_below(tmp_path / "toy") == TABLES


@pytest.mark.parametrize(
    ("files", "outcome"),
    [
        ({"train.csv": make_table(7, 5)}, nullcontext()),
        ({"val.csv.gz": gzip.compress(TABLES["val.csv"]), "notes.txt": b"x"}, nullcontext()),
        ({"a/b.cif": b"data_x"}, pytest.raises(DataError, match="1 of 1 crystals rejected")),
    ],
)
def test_nothing_is_added_to_a_folder_with_other_files(server, tmp_path, options, files, outcome):
    for name, content in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(content)
    data = DataModule(tmp_path / "mine", max_rejected=1.0, **options)
    with outcome:
        data.prepare_data()
    assert server.requests == []
    assert files_below(tmp_path / "mine") == files


def test_nothing_is_downloaded_if_data_dir_is_a_file(server, tmp_path, options):
    (tmp_path / "mine.csv").write_bytes(TABLES["train.csv"])
    assert len(DataModule(tmp_path / "mine.csv", **options).dataset("train")) == 120
    assert server.requests == []


def test_nothing_is_downloaded_without_download(tmp_path, options):
    with pytest.raises(DataError, match="There is no folder"):
        DataModule(tmp_path / "toy", **{**options, "download": False}).prepare_data()
    assert not (tmp_path / "toy").exists()


@pytest.mark.parametrize("source", [None, "mp_21"])
def test_an_unknown_source(tmp_path, source):
    with pytest.raises(DataError, match=r"data\.source=.* is none of mp_20, perov_5"):
        DataModule(tmp_path, source=source, download=True)


@pytest.mark.parametrize("there", [True, False])
def test_the_error_for_a_missing_set_has_the_command(tmp_path, there):
    if there:
        (tmp_path / "mp_20").mkdir()
    command = (
        f"`python scripts/download_data.py mp_20 --data-dir {tmp_path}` downloads this known data "
        "set"
    )
    with pytest.raises(DataError) as error:
        find_readers(tmp_path / "mp_20")
    assert command in str(error.value)
    with pytest.raises(DataError) as error:
        find_readers(tmp_path / "mine")
    assert "download_data" not in str(error.value)
