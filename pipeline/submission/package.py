"""The working folder of a job on a cluster: Winnow's own code, the config, and a folder of the user's.

The code travels, so that the nodes need its dependencies only, and a cluster whose image has another version of Winnow
runs the one that submitted. Hidden files, caches and virtual environments stay here.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError

MAX_BYTES = 100 << 20
"""Before compression. The job server of Ray takes no larger request."""

_CODE = ("jobs", "pipeline", "operators", "winnow")
_UNKNOWN_VERSION = "0+unknown"

_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON may hold as they are and YAML may not, or takes for the end of a line."""


@dataclass(frozen=True)
class Package:
    """A folder that is ready to be sent.

    Attributes:
        folder: holds the files and nothing else.
        files: how many.
        bytes: their size.
        digest: 12 hexadecimal digits that name their paths and contents.
    """

    folder: Path
    files: int
    bytes: int
    digest: str


def write_package(folder: Path, config_name: str, config: Any, working_dir: Path | None = None) -> Package:
    """Fills an empty folder.

    Args:
        folder: of this machine.
        config_name: what the config is called there.
        config: its value, as it would come from JSON.
        working_dir: what is below it comes along.

    Raises:
        ConfigError: more than `MAX_BYTES`, or a folder of the user's that has the name of one of Winnow's.
    """
    files = dict(user_files(working_dir)) if working_dir else {}
    files |= dict(_code_files())
    total = sum(path.stat().st_size for path in files.values())
    if total > MAX_BYTES:
        largest = max(files, key=lambda name: files[name].stat().st_size)
        raise ConfigError(
            f"--working-dir must hold at most {MAX_BYTES >> 20} MiB, got {total >> 20} MiB, the largest file "
            f"{largest}; large files belong into a store that the cluster can read"
        )
    for name, path in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    for name, text in {config_name: to_yaml(config), **_metadata()}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return _describe(folder)


def user_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder that travel: name in it -> path. Raises ConfigError where it has a name of Winnow's."""
    own = {_place(name).name: _place(name).resolve() for name in _CODE}
    for name, place in own.items():
        if (folder / name).exists() and (folder / name).resolve() != place:
            raise ConfigError(f"--working-dir must hold no {name}, as Winnow has one of its own, got {folder / name}")
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if _travels(Path(parent, name))]
        for name in names:
            path = Path(parent, name)
            if _travels(path) and path.is_file():
                yield str(path.relative_to(folder)), path


def to_yaml(value: Any) -> str:
    """Values as they would come from JSON, in YAML 1.2 that is read back as the same: PyYAML itself writes 1.1."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def _describe(folder: Path) -> Package:
    blake2b, files, size = hashlib.blake2b(digest_size=6), 0, 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        blake2b.update(f"{path.relative_to(folder)}\0{len(data)}\0".encode())
        blake2b.update(data)
        files, size = files + 1, size + len(data)
    return Package(folder, files, size, blake2b.hexdigest())


def _code_files() -> Iterator[tuple[str, Path]]:
    """The files of Winnow, wherever it is installed."""
    for name in _CODE:
        place = _place(name)
        if place.is_file():
            yield place.name, place
            continue
        for path in sorted(place.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(place)}", path


def _place(name: str) -> Path:
    """The folder of a package, or the file of a module."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)


def _metadata() -> Mapping[str, str]:
    """Gives the code that travels its version: manifests record it, also where no Winnow is installed."""
    try:
        version = importlib.metadata.version("winnow")
    except importlib.metadata.PackageNotFoundError:
        version = _UNKNOWN_VERSION
    return {"winnow.dist-info/METADATA": f"Metadata-Version: 2.1\nName: winnow\nVersion: {version}\n"}


def _travels(path: Path) -> bool:
    return not (path.name.startswith(".") or path.name == "__pycache__" or (path / "pyvenv.cfg").exists())
