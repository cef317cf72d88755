"""Finding, identifying, checking and reading weight files, wherever they lie. Nothing here ever unpickles.

A weight file is safetensors, or a torch checkpoint of tensors and plain values: a state dict, or one under `state_dict`
or `model` as open_clip and others save it. A folder is an export folder: one weight file beside open_clip's config.
"""

import hashlib
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file
from torch import Tensor

from operators.errors import ModelError
from pipeline.remote import open_location, read_whole, retry
from pipeline.resuming import resuming

CONFIG_NAME = "open_clip_config.json"
ORIGIN_NAME = "training.json"
_PREFERRED = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
_BLOCK_BYTES = 1 << 22
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class WeightFile:
    """One weight file.

    Attributes:
        fs: the file system that holds it.
        path: its path there.
        config: open_clip's config that lies beside it in an export folder; None elsewhere.
        sha256: what `winnow train` says beside it that its content must be; None elsewhere.
    """

    fs: Any
    path: str
    config: dict[str, Any] | None = None
    sha256: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether the file can be opened where it lies."""
        return isinstance(self.fs, LocalFileSystem)


def find_weights(url: str, storage: Mapping[str, Any] | None = None) -> WeightFile:
    """Resolves a path or URL of a weight file or an export folder.

    Args:
        url: of the file or folder.
        storage: options for fsspec.

    Raises:
        ModelError: there is none, or it cannot be reached.
    """
    with _reaching(url):
        fs, path = open_location(url, storage)
        if not retry(lambda: fs.isdir(path)):
            retry(lambda: fs.info(path))
            return WeightFile(fs, path)
        names = {Path(entry).name: entry for entry in sorted(retry(lambda: fs.ls(path, detail=False)))}
    found = [name for name in _PREFERRED if name in names] or [name for name in names if name.endswith(".safetensors")]
    if not found:
        raise ModelError(f"folder of weights must hold a .safetensors or .bin file, got {url}")
    config = read_json(fs.unstrip_protocol(names[CONFIG_NAME]), storage) if CONFIG_NAME in names else None
    origin = read_json(fs.unstrip_protocol(names[ORIGIN_NAME]), storage) if ORIGIN_NAME in names else {}
    return WeightFile(fs, names[found[0]], config, origin.get("files", {}).get(found[0], {}).get("sha256"))


def fingerprint(file: WeightFile) -> str:
    """What tells two versions of a file apart: a hash of its content, or size and ETag where it lies far away."""
    with _reaching(file.path):
        if not file.is_local:
            info = retry(lambda: file.fs.info(file.path))
            return f"{info['size']}:{info.get('ETag') or file.fs.ukey(file.path)}"
        stat = Path(file.path).stat()
        hashed, sha256 = _content_hash(file.path, (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    _check_content(file, sha256)
    return hashed


def read_json(url: str, storage: Mapping[str, Any] | None = None) -> Any:
    """Raises ModelError where the file is missing or no JSON."""
    with _reaching(url):
        content = read_whole(url, storage)
    try:
        return json.loads(content)
    except ValueError as error:
        raise ModelError(f"model config must be JSON, got {url} ({error})") from error


def check_header(file: WeightFile) -> None:
    """Reads the first bytes of a weight file, so that a wrong or truncated one is known before any work.

    Raises:
        ModelError: it is neither safetensors nor a torch checkpoint, or its size is not what its header says.
    """
    with _reaching(file.path):
        size = retry(lambda: file.fs.info(file.path))["size"]
        with resuming(file.fs, file.path, file.path, read_ahead=False) as stream:
            start = stream.read(8)
            if not file.path.endswith(".safetensors"):
                _check(start.startswith((b"PK\x03\x04", b"\x80\x02")), "a .safetensors or torch file", file.path)
                return
            header_bytes = int.from_bytes(start, "little")
            _check(0 < header_bytes <= min(size - 8, _MAX_HEADER_BYTES), "safetensors", file.path)
            header = stream.read(header_bytes)
    try:
        tensors = json.loads(header)
        data_bytes = max((t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"weights must be safetensors, got {file.path} ({error})") from error
    _check(size == 8 + header_bytes + data_bytes, f"{8 + header_bytes + data_bytes} bytes long", f"{file.path}: {size}")


def local_copy(file: WeightFile) -> Path:
    """A path on this machine with the file's content; a remote file is downloaded once into the user's cache.

    Processes may ask at once: each downloads under its own name, and putting the copy in place is atomic.
    """
    if file.is_local:
        return Path(file.path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "winnow" / "weights"
    version = fingerprint(file)
    name = hashlib.blake2b(f"{file.path}\0{version}".encode(), digest_size=16).hexdigest()
    target = cache / (name + Path(file.path).suffix)
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        partial = cache / f".{name}.{uuid.uuid4().hex}"
        try:
            with _reaching(file.path), resuming(file.fs, file.path, file.path) as source, partial.open("wb") as copy:
                shutil.copyfileobj(source, copy, _BLOCK_BYTES)
            file.fs.invalidate_cache()
            if fingerprint(file) != version:
                raise ModelError(f"weights must stay as they are while they are read, got another version: {file.path}")
            _check_content(file, file.sha256 and _content_hash(str(partial), ())[1])
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    return target


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, without the `module.` that distributed training puts before each.

    Raises:
        ModelError: the file is damaged, holds no tensors, or could only be read by executing it.
    """
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        raise ModelError(f"weights must be plain tensors (save them as safetensors), got a TorchScript program: {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"weights must be tensors and plain values only, got {path} ({reason})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = content.items() if isinstance(content, dict) else ()
    state = {str(key).removeprefix("module."): value for key, value in tensors if isinstance(value, Tensor)}
    if not state:
        raise ModelError(f"weights must hold tensors by name, got none in {path}")
    return state


@lru_cache(maxsize=32)
def _content_hash(path: str, _version: tuple[int, ...]) -> tuple[str, str]:
    """BLAKE2b-128 and SHA-256 of a local file; the version only makes the cache forget a file that changed."""
    digest, sha256 = hashlib.blake2b(digest_size=16), hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            sha256.update(block)
    return digest.hexdigest(), sha256.hexdigest()


def _check_content(file: WeightFile, sha256: str | None) -> None:
    rule = f"of the SHA-256 {file.sha256} that {ORIGIN_NAME} beside them gives (`winnow train` makes them again)"
    _check(file.sha256 in (None, sha256), rule, f"{file.path} of {sha256}")


def _check(condition: bool, rule: str, got: str) -> None:
    if not condition:
        raise ModelError(f"weights must be {rule}, got {got}")


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Object stores raise errors of many families; all of them mean that the file cannot be had."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"weights must exist and be readable, got {url} ({type(error).__name__}: {error})") from error
