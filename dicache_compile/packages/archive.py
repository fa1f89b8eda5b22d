"""The bytes of a package: a .pt2 archive of PyTorch's, which is a zip without compression, with entries of our own.

The weights lie in one of them one after the other, so that a process maps them into its memory as they are.
"""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import os
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from .text import Text, dtype_of, dtype_text

PROGRAM, CONFIG, WEIGHTS = "dicache/program.json", "dicache/config.pkl", "dicache/weights.bin"
_ALIGNED = 64  # bytes, where each weight begins
_AT_ONCE = 2**24  # bytes that are read
_ROOT = "package"  # of all entries


def write(
    path: Path, libraries: Mapping[str, list[str]], about: Text, config: bytes, weights: Mapping[str, Tensor]
) -> None:
    """Writes a package whole or not at all."""
    from torch._inductor.package.package import package_aoti  # here, as it takes long and reading needs none of it

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".dicache_") as folder:
        made = Path(folder) / f"{_ROOT}.pt2"
        package_aoti(str(made), {name: list(files) for name, files in libraries.items()})
        with zipfile.ZipFile(made, "a", zipfile.ZIP_STORED) as archive:
            index = _write_weights(archive, weights)
            archive.writestr(f"{_ROOT}/{CONFIG}", config)
            archive.writestr(f"{_ROOT}/{PROGRAM}", json.dumps({**about, "weights": index}, indent=1))
        os.replace(made, path)


def _write_weights(archive: zipfile.ZipFile, weights: Mapping[str, Tensor]) -> dict[str, Text]:
    index = {}
    with archive.open(f"{_ROOT}/{WEIGHTS}", "w", force_zip64=True) as file:
        assert archive.fp is not None
        begin, at = archive.fp.tell(), 0
        for name, weight in weights.items():
            padding = -(begin + at) % _ALIGNED
            file.write(bytes(padding))
            plain = weight.detach().cpu().contiguous()
            size = plain.numel() * plain.element_size()
            if size:
                file.write((ctypes.c_char * size).from_address(plain.data_ptr()))
            index[name] = {**asdict(TensorForm.of(weight)), "offset": at + padding}
            at += padding + size
    return index


@dataclass(frozen=True, slots=True)
class TensorForm:
    """What a tensor has to be like."""

    dtype: str
    shape: list[int]
    stride: list[int]  # in elements
    device: str

    @classmethod
    def of(cls, tensor: Tensor) -> TensorForm:
        return cls(dtype_text(tensor.dtype), list(tensor.shape), list(tensor.stride()), str(tensor.device))

    def __str__(self) -> str:
        return f"{self.dtype} of {self.shape} with strides {self.stride} on {self.device}"

    @classmethod
    def told(cls, text: Text) -> TensorForm:
        return cls(*(text[one.name] for one in fields(cls)))


def read(path: Path) -> tuple[Text, bytes]:
    """(the program, the pickled config). Nothing of the file is run.

    Raises ValueError for what is no package, or is not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # Nothing in a package is compressed: what is could grow to any size, or not be read at all.
            if packed := [one.filename for one in archive.infolist() if one.file_size != one.compress_size]:
                raise ValueError(f"{packed[0]} is compressed")
            names = [name for name in archive.namelist() if not name.endswith(WEIGHTS)]
            content = {name: archive.read(name) for name in names}  # all of them: each has a checksum
        text = json.loads(content[f"{_ROOT}/{PROGRAM}"])
        return text, content[f"{_ROOT}/{CONFIG}"]
    except KeyError as error:
        raise ValueError(f"{path}: expected a file that dicache_compile.save_package wrote") from error
    # RuntimeError: of what is encrypted, compressed in a way that Python cannot read, or nested too deep.
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is no package, or not whole: {error}") from error


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Around what is made of a program that was read: raises ValueError where it has not what a program has."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        what = f"its program has other content ({type(error).__name__}: {error})"
        raise ValueError(f"{path} is no package, or not whole: {what}") from error


def check_weights(path: Path) -> None:
    """Reads all weights once. Raises ValueError where they are not those that were written."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_ROOT}/{WEIGHTS}") as file:
            while file.read(_AT_ONCE):
                pass
    except (zipfile.BadZipFile, EOFError, KeyError) as error:
        raise ValueError(f"{path} is no package, or not whole: {error}") from error


def read_weights(path: Path, index: Mapping[str, Text]) -> dict[str, Tensor]:
    """The weights in a package, mapped from the file: processes share them until one writes."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        header = archive.getinfo(f"{_ROOT}/{WEIGHTS}").header_offset
        file.seek(header)
        name, extra = struct.unpack("<26xHH", file.read(30))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    begin = header + 30 + name + extra
    return {name: _weight(mapped, begin + one["offset"], TensorForm.told(one)) for name, one in index.items()}


def _weight(mapped: mmap.mmap, begin: int, form: TensorForm) -> Tensor:
    dtype, shape, stride = dtype_of(form.dtype), form.shape, form.stride
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.empty_strided(shape, stride, dtype=dtype)
    plain = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=begin).view(dtype).view(shape)
    return plain if list(plain.stride()) == stride else torch.empty_strided(shape, stride, dtype=dtype).copy_(plain)
