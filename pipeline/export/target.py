"""The place that an export writes to: a folder of its own, or a single file in a folder of somebody's.

Files appear whole or not at all: they are written as scratch files and moved or uploaded when they are complete. What
an export writes is a pure function of what it reads, so of two writers of one file it does not matter who is last.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from operators.errors import WorkspaceError
from pipeline.claim import Claim
from pipeline.export.settings import Export
from pipeline.integrity import read_sealed, sealed
from pipeline.local_files import file_sha256
from pipeline.remote import retry
from pipeline.storage import Store

FOLDERS = {"webdataset", "parquet", "clip_retrieval", "semdedup"}
"""The formats that fill a folder of their own."""


@dataclass(frozen=True)
class Target:
    """Where an export goes.

    Attributes:
        store: the folder; its URL is absolute, so that it is the same in every process and for every later command.
        file: the one file's name; empty for an export with a folder of its own.
    """

    store: Store
    file: str = ""

    @property
    def url(self) -> str:
        """The folder, or the one file, absolute."""
        return self.url_of(self.file) if self.file else self.store.url

    def url_of(self, name: str) -> str:
        """One of the files, absolute."""
        return f"{self.store.url.rstrip('/')}/{name}"

    def sizes(self) -> dict[str, int]:
        """What lies there: name -> bytes, hidden files aside.

        Raises:
            WorkspaceError: a file is where a folder should be, or the other way round.
        """
        filesystem, path = self.store.filesystem, self.store.path(self.file)
        filesystem.invalidate_cache()
        if self.file:
            if retry(lambda: filesystem.isdir(path)):
                raise WorkspaceError(f"export path must be a file, got the folder {self.url}")
            return {self.file: self.store.size(self.file)} if self.store.exists(self.file) else {}
        if retry(lambda: filesystem.isfile(path)):
            raise WorkspaceError(f"export path must be a folder, got the file {self.url}")
        found = self.store.find("", pass_closed=True)  # `lost+found` of a disk is nobody's business
        return {name: size for name, size in found.items() if not _is_hidden(name)}

    def remove_scratch(self) -> None:
        """Removes what killed attempts left beside the files: in a folder of our own, or for the one file."""
        if self.store.is_local:
            scratch = re.compile(rf"\.attempt-{re.escape(self._mark)}[0-9a-f]{{32}}")
            for name in filter(scratch.fullmatch, self.store.names("")):
                self.store.remove(name)

    def scratch(self) -> AbstractContextManager[Path]:
        """As `Store.scratch`; in somebody's folder it has the name of the file that it is for."""
        return self.store.scratch("", mark=self._mark)

    @property
    def _mark(self) -> str:
        return f"{self.file}-" if self.file else ""


def open_target(settings: Export) -> Target:
    """The target that a config names. Raises WorkspaceError for a file without a name."""
    if settings.format in FOLDERS:
        return Target(_absolute(Store(settings.path, settings.storage)))
    folder, slash, name = settings.path.rpartition("/")
    if not name:
        raise WorkspaceError(f"export path must be a file for format {settings.format}, got {settings.path}")
    return Target(_absolute(Store(folder or slash or ".", settings.storage)), name)


def _absolute(store: Store) -> Store:
    path = store.path().rstrip("/") or "/"
    return Store(path if store.is_local else store.filesystem.unstrip_protocol(path), store.options)


@dataclass(frozen=True)
class File:
    """A file that was written."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Piece:
    """Files that one task writes together.

    Attributes:
        names: of the files.
        samples: how many samples they hold.
        write: fills local files, given in the order of the names; picklable.
    """

    names: tuple[str, ...]
    samples: int
    write: Callable[[Sequence[Path]], None]


def write_piece(
    workspace: Store, target: Target, receipts: str, claim: Claim | None, piece: Piece
) -> tuple[int, list[File]]:
    """Writes the files of a piece, then its receipt.

    Args:
        workspace: where the receipt goes.
        target: where the files go.
        receipts: a folder in the workspace.
        claim: of the driver on the workspace, which must still stand when anything is replaced.
        piece: what to write.

    Returns:
        (samples, files).

    Raises:
        WorkspaceError: another run has the workspace.
    """

    def check() -> None:
        if claim:
            claim.check()

    with ExitStack() as scratches:
        paths = [scratches.enter_context(target.scratch()) for _ in piece.names]
        piece.write(paths)
        files = [
            File(name, path.stat().st_size, file_sha256(path)) for name, path in zip(piece.names, paths, strict=True)
        ]
        for file, path in zip(files, paths, strict=True):
            check()
            target.store.replace_file(path, file.name)
    check()
    workspace.replace(f"{receipts}/{piece.names[0]}.json", sealed({"files": [asdict(file) for file in files]}))
    return piece.samples, files


def read_receipts(workspace: Store, receipts: str) -> Iterator[File]:
    """The files of all receipts in a folder, whose listing may lag behind. Raises DamagedError."""
    for name in workspace.find(receipts):
        if not _is_hidden(name):  # scratch of an attempt that was killed
            try:
                record = read_sealed(workspace, name)
            except FileNotFoundError:
                continue
            # Of an earlier version it is a list without a seal: what that vouches for is written again.
            yield from (File(**file) for file in (record["files"] if isinstance(record, dict) else ()))


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")
