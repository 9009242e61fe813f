"""Store many crystals in a few flat tensors on disk, and read the rows of some of them."""

import json
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

LARGE = 2**28  # bytes; smaller files may be loaded into memory completely

_DTYPES = {"U8": torch.uint8, "I32": torch.int32, "I64": torch.int64, "F32": torch.float32}


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], ids: Sequence[str], y: Mapping[str, Tensor]
) -> None:
    """Write tensors, IDs and properties to one safetensors file, to be read by `MappedTensors`."""
    text = np.frombuffer(json.dumps(list(ids)).encode(), dtype=np.uint8)
    properties = {f"y.{name}": value for name, value in y.items()}
    path.touch()
    permissions = path.stat().st_mode  # the usual ones; save_file would restrict them to the owner
    save_file({**tensors, **properties, "ids": torch.from_numpy(text.copy())}, path)
    path.chmod(permissions)


class TensorWriter:
    """Context manager to write a file like `save_tensors`, but a few rows at a time.

    The rows are not kept in memory, but written to a temporary file for each tensor, in a temporary
    folder next to `path`. The file at `path` is created when the block ends without an error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, BinaryIO] = {}
        self._kinds: dict[str, tuple[torch.dtype, torch.Size]] = {}  # data type, row shape
        self._num_ids = 0

    def append(
        self, tensors: Mapping[str, Tensor], ids: Sequence[str], y: Mapping[str, Tensor]
    ) -> None:
        """Append rows. Names, data types and row shapes must be the same in every call.

        Raises:
            ValueError: if a data type or row shape changes.
        """
        properties = {f"y.{name}": value for name, value in y.items()}
        for name, tensor in {**tensors, **properties}.items():
            kind = (tensor.dtype, tensor.shape[1:])
            if self._kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name} changed from {self._kinds[name]} to {kind}")
            self._file(name).write(tensor.numpy().tobytes())
        text = "".join(
            f"{', ' if self._num_ids + i else '['}{json.dumps(name)}" for i, name in enumerate(ids)
        )
        self._num_ids += len(ids)
        self._file("ids").write(text.encode())

    def _file(self, name: str) -> BinaryIO:
        if name not in self._files:
            # numbered, because property names may be invalid file names
            path = Path(self._folder, str(len(self._files)))
            self._files[name] = self._stack.enter_context(path.open("w+b"))
        return self._files[name]

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        folder = tempfile.TemporaryDirectory(prefix=self._path.name, dir=self._path.parent)
        self._folder = self._stack.enter_context(folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._put_together()

    def _put_together(self) -> None:
        # https://github.com/huggingface/safetensors#format; the widest types come first, so that
        # all tensors are aligned
        self._file("ids").write(b"]" if self._num_ids else b"[]")
        kinds = {**self._kinds, "ids": (torch.uint8, torch.Size())}
        codes = {dtype: code for code, dtype in _DTYPES.items()}
        header, end = {}, 0
        names = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
        for name in names:
            dtype, row = kinds[name]
            start, end = end, end + self._file(name).tell()
            num_rows = (end - start) // (dtype.itemsize * math.prod(row))
            header[name] = {
                "dtype": codes[dtype], "shape": [num_rows, *row], "data_offsets": [start, end],
            }  # fmt: skip
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with self._path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in names:
                self._file(name).seek(0)
                shutil.copyfileobj(self._file(name), file, 2**20)


class MappedTensors:
    """A memory-mapped file from `save_tensors` or `TensorWriter`, read only where it is accessed.

    Do not modify the tensors: changes are not written to the file.

    Attributes:
        tensors: tensors by name.
        ids: IDs of the crystals, parsed on first access, because millions of them take more memory
            than the crystals.
        y: properties by name.

    Raises:
        SafetensorError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with safe_open(path, framework="pt"):
            pass  # let safetensors validate the header, so that the offsets below are safe
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_COPY)
        # https://github.com/huggingface/safetensors#format
        start = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:start])
        header.pop("__metadata__", None)
        self._layout = {
            name: (_DTYPES[entry["dtype"]], entry["shape"], start + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        found = {name: self._tensor(*entry) for name, entry in self._layout.items()}
        self.ids: Sequence[str] = _LazyNames(found.pop("ids"))
        self.y = {name[2:]: found.pop(name) for name in list(found) if name.startswith("y.")}
        self.tensors = found

    def _tensor(self, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
        count = math.prod(shape)
        if not count:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).reshape(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)  # another process maps the file again

    @property
    def is_large(self) -> bool:
        """Whether to read rows with `rows` instead of from the mapped tensors.

        Reading scattered rows of a mapped file also loads the pages around them, until the whole
        file is in memory. In a large file, nearly every row causes a page fault, which takes longer
        than reading the row.
        """
        return len(self._map) > LARGE and hasattr(os, "pread")  # not on Windows

    def rows(self, name: str, starts: Tensor, counts: Tensor) -> Tensor:
        """Read segments of rows of a tensor into new memory, one segment after another.

        Args:
            name: name of the tensor.
            starts, counts: (b,) first row and number of rows of each segment.
        """
        dtype, shape, offset = self._layout[name]
        if not len(starts):
            return torch.empty(0, *shape[1:], dtype=dtype)
        size = dtype.itemsize * math.prod(shape[1:])
        parts = [
            os.pread(self._file, count * size, offset + start * size)
            for start, count in zip(starts.tolist(), counts.tolist(), strict=True)
        ]
        return torch.frombuffer(bytearray(b"".join(parts)), dtype=dtype).reshape(-1, *shape[1:])


class _LazyNames(Sequence[str]):
    """Names in a JSON list, parsed on first access."""

    def __init__(self, text: Tensor) -> None:
        self._text = text

    @cached_property
    def _names(self) -> list[str]:
        return json.loads(self._text.numpy().tobytes())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        return self._names[index]


def ragged_index(starts: Tensor, counts: Tensor, total: int) -> Tensor:
    """Row indices of segments of a flat tensor, one segment after another.

    Args:
        starts: (b,) int64, the first row of each segment.
        counts: (b,) int64, the number of rows of each segment.
        total: the sum of `counts`, passed to avoid synchronizing with the device.

    Returns:
        (total,) int64.
    """
    # entry k of the result is k + (start in the flat tensor - start in the result)
    offset = starts - (counts.cumsum(0) - counts)
    rows = torch.arange(total, device=counts.device)
    return rows + offset.repeat_interleave(counts, output_size=total)
