"""A workspace folder on any fsspec file system, and the two ways anything is written into it.

`publish` is for data and manifests: it fails softly when the name exists, so two writers can never both win.
`replace` is for the few files that show the latest run (`summary.json`, `report.html`), and for damaged ones: the last
writer wins, whole.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from fsspec.implementations.local import LocalFileSystem

from operators.errors import InputChanged, WorkspaceError
from pipeline.lease import check_held, held
from pipeline.local_files import create, flush, walk
from pipeline.remote import ATTEMPTS, is_s3, open_location, retry
from pipeline.resuming import resuming
from pipeline.temporary import temporary_path

_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOTDIR}

_UPLOAD_PART_BYTES = 16 << 20
_UPLOADS_AT_ONCE = 4
"""A file of twice a part or more goes up in parts, so that no file need be held in memory."""
_MAX_UPLOAD_PARTS = 10_000


T = TypeVar("T")


def absolute(path: str) -> str:
    """A path that means the same in every working folder; a URL is one already."""
    return path if "://" in path else str(Path(path).expanduser().absolute())


@dataclass(frozen=True)
class Store:
    """A root folder. Paths given to its methods are relative to it, with `/`.

    Attributes:
        url: a local path or `protocol://...`.
        options: what fsspec needs to open it (`endpoint_url`, `profile`, `anon`, ...).
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    @property
    def filesystem(self) -> Any:
        """The fsspec file system; fsspec keeps one per process and options."""
        return self._locate()[0]

    @property
    def is_local(self) -> bool:
        """Whether the root lies on a disk of this machine (or one mounted on it)."""
        return isinstance(self.filesystem, LocalFileSystem)

    def path(self, name: str = "") -> str:
        """The file system's own path of `name`."""
        root = self._locate()[1]
        return f"{root.rstrip('/')}/{name}" if name else root

    def open(self, name: str) -> BinaryIO:
        """Opens a file for reading, seekable. A broken connection to a store is opened anew where it stopped."""
        filesystem, path = self.filesystem, self.path(name)
        if isinstance(filesystem, LocalFileSystem):
            return cast(BinaryIO, filesystem.open(path, "rb"))
        return cast(BinaryIO, resuming(filesystem, path, f"{self.url}/{name}"))

    def read(self, name: str) -> bytes:
        """The whole content of a file; one replaced while it is read is read anew. Raises FileNotFoundError."""
        if self.is_local:
            return cast(bytes, self.filesystem.cat_file(self.path(name)))
        for _ in range(ATTEMPTS - 1):
            with contextlib.suppress(InputChanged):
                return self._read_version(name)
        return self._read_version(name)

    def _read_version(self, name: str) -> bytes:
        """The whole content of a file. Raises FileNotFoundError; InputChanged if it is replaced meanwhile."""
        with self.open(name) as file:
            return file.read()

    def read_json(self, name: str) -> Any:
        """The parsed content of a JSON file. Raises FileNotFoundError; WorkspaceError when it is not JSON."""
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise WorkspaceError(f"{self.url}/{name} must be JSON, got {error}") from error

    def exists(self, name: str) -> bool:
        """Whether a file of that name is there."""
        if not self.is_local:
            return bool(retry(lambda: self.filesystem.exists(self.path(name))))
        try:
            Path(self.path(name)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return False  # of any other error fsspec would say so, too
        return True

    def size(self, name: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        return int(self._try(lambda: self.filesystem.size(self.path(name))))

    def modified(self, name: str) -> float:
        """When a file was last changed, by the clock of its store: seconds since 1970. Raises FileNotFoundError."""
        return float(self._try(lambda: self.filesystem.modified(self.path(name))).timestamp())

    def names(self, folder: str) -> list[str]:
        """The names right below a folder, sorted; none where there is no such folder."""
        self.filesystem.invalidate_cache()
        own = self.path(folder).rstrip("/")
        try:
            paths = self._try(lambda: self.filesystem.ls(own, detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths if path.rstrip("/") != own)

    def find(self, folder: str, *, pass_closed: bool = False) -> dict[str, int]:
        """Every file below a folder: relative path -> size in bytes, sorted by path; empty when there is no folder.

        Args:
            folder: relative, as all paths.
            pass_closed: pass over folders on a disk that this process may not look into.
        """
        root = self.path().rstrip("/") + "/"
        if self.is_local:
            return {path[len(root) :]: size for path, size in sorted(walk(self.path(folder), pass_closed=pass_closed))}
        self.filesystem.invalidate_cache()
        found = retry(lambda: self.filesystem.find(self.path(folder), detail=True))
        # A path that ends in a slash stands for a folder that was made by hand.
        return {path[len(root) :]: int(info["size"]) for path, info in sorted(found.items()) if not path.endswith("/")}

    def remove(self, name: str) -> None:
        """Deletes a file or a folder with all below it; no error when it is not there. Raises as `replace` does."""
        check_held(self.url, name)
        with contextlib.suppress(FileNotFoundError):
            self._try(lambda: self.filesystem.rm(self.path(name), recursive=True))

    def move(self, name: str, target: str) -> None:
        """Gives a file another name, whatever had that one. Raises as `replace` does."""
        check_held(self.url, name)
        with explain_write_errors(self.url):
            if self.is_local:
                place = Path(self.path(target))
                place.parent.mkdir(parents=True, exist_ok=True)
                Path(self.path(name)).replace(place)
                return
            self._try(lambda: self.filesystem.copy(self.path(name), self.path(target)))
        self.remove(name)

    @contextlib.contextmanager
    def scratch(self, folder: str, *, mark: str = "") -> Iterator[Path]:
        """A file of this attempt's own, to be written and then given to `publish_file`; removed on leaving.

        It lies beside its destination when that is a local disk (a hard link cannot cross disks), else in the
        machine's temporary folder (`pipeline.temporary`).

        Args:
            folder: of the destination.
            mark: part of its name.
        """
        with explain_write_errors(self.url if self.is_local else tempfile.gettempdir()):
            if self.is_local:
                parent = Path(self.path(folder))
                parent.mkdir(parents=True, exist_ok=True)
                path = parent / f".attempt-{mark}{uuid.uuid4().hex}"
            else:
                path = temporary_path()
            try:
                yield path
            finally:
                path.unlink(missing_ok=True)

    def publish_file(self, scratch: Path, name: str) -> bool:
        """Publishes a finished scratch file under `name` unless that name exists.

        Returns:
            True when the name now holds this content, False when it holds another's.
        """
        with explain_write_errors(self.url):
            if self.is_local:
                return create(scratch, Path(self.path(name)))
            return self._create_remote(name, scratch)

    def publish(self, name: str, data: bytes) -> bool:
        """Publishes bytes under `name` unless that name exists. Returns as `publish_file` does."""
        if not self.is_local:
            return self._create_remote(name, data)
        with self.scratch(name.rpartition("/")[0]) as scratch:
            scratch.write_bytes(data)
            return self.publish_file(scratch, name)

    def publish_json(self, name: str, value: Any) -> bool:
        """`publish` of a value as JSON with sorted keys."""
        return self.publish(name, to_json(value))

    def replace(self, name: str, data: bytes) -> None:
        """Writes bytes under `name`, whole or not at all, whatever was there.

        Raises:
            WorkspaceError: the folder cannot be written to, or this run holds it no more.
        """
        check_held(self.url, name)
        if not self.is_local:
            with explain_write_errors(self.url):
                self._overwrite_remote(name, data)
            return
        with self.scratch(name.rpartition("/")[0]) as scratch:
            scratch.write_bytes(data)
            self.replace_file(scratch, name)

    def replace_file(self, scratch: Path, name: str) -> None:
        """`replace` with the content of a finished scratch file."""
        check_held(self.url, name)
        with explain_write_errors(self.url):
            if not self.is_local:
                self._overwrite_remote(name, scratch)
                return
            flush(scratch)
            Path(self.path(name)).parent.mkdir(parents=True, exist_ok=True)
            scratch.replace(self.path(name))

    @contextlib.contextmanager
    def locked(self, note: Callable[[str], None] | None = None) -> Iterator[None]:
        """Makes this run the only one that writes what must be single here: see `pipeline.lease`.

        Args:
            note: is told when another run's end has to be waited for.

        Raises:
            WorkspaceError: another run has it, or has taken it over since.
        """
        with held(self, note or (lambda text: None)):
            yield

    def check_writable(self) -> None:
        """Raises WorkspaceError unless a file can be written into and removed from the root."""
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.replace(probe, b"winnow")
            self.remove(probe)
        except WorkspaceError:
            raise
        except Exception as error:  # each store has its own family of errors: credentials, endpoints, buckets, options
            raise WorkspaceError(f"{_writable(self.url)}, got: {type(error).__name__}: {error}") from error

    def _try(self, action: Callable[[], T]) -> T:
        """An operation on a store is tried again when it fails; one on a disk is not."""
        return action() if self.is_local else retry(action)

    def _locate(self) -> tuple[Any, str]:
        # A remembered listing would hide what other processes have written since.
        options = {"use_listings_cache": False, **self.options}
        try:
            filesystem, path = open_location(self.url, options)
        except (ImportError, ValueError) as error:
            raise WorkspaceError(f"{self.url} must have a protocol that fsspec can open, got: {error}") from error
        if not isinstance(filesystem, LocalFileSystem) and set(path) & set("*?["):
            raise WorkspaceError(f"{self.url} must hold none of * ? [ in a store, where they stand for other names")
        return filesystem, path

    def _create_remote(self, name: str, source: bytes | Path) -> bool:
        """A conditional put. One whose reply was lost meets its own success when tried again: same bytes, same win."""

        def create() -> bool:
            try:
                _put(self.filesystem, self.path(name), source, mode="create")
            except FileExistsError:
                return self._holds(name, source)
            except FileNotFoundError:  # S3 knows no more of an upload in parts once it has finished it
                if not self.exists(name):
                    raise
                return self._holds(name, source)
            return True

        return retry(create)

    def _overwrite_remote(self, name: str, source: bytes | Path) -> None:
        def overwrite() -> None:
            try:
                _put(self.filesystem, self.path(name), source, mode="overwrite")
            except FileNotFoundError:  # as above
                if not (self.exists(name) and self._holds(name, source)):
                    raise

        retry(overwrite)

    def _holds(self, name: str, source: bytes | Path) -> bool:
        """Whether an object has this very content; large ones are compared block by block."""
        if isinstance(source, bytes):
            return self.read(name) == source
        with self.open(name) as there, source.open("rb") as here:
            if there.seek(0, os.SEEK_END) != source.stat().st_size:
                return False
            there.seek(0)
            while block := here.read(_UPLOAD_PART_BYTES):
                if there.read(len(block)) != block:
                    return False
        return True


def to_json(value: Any) -> bytes:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def digest(*values: Any) -> str:
    """16 hexadecimal digits that name a JSON-able value: the address of whatever is a pure function of it."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@contextlib.contextmanager
def explain_write_errors(url: str) -> Iterator[None]:
    """Turns a refused write into a WorkspaceError that names the folder and the system's word for why."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise WorkspaceError(f"{_writable(url)}, got: {os.strerror(error.errno)}") from error
        raise


def _put(filesystem: Any, path: str, source: bytes | Path, mode: str) -> None:
    """One put of bytes or of a local file. `mode` is fsspec's: `create` fails if the name exists."""
    if isinstance(source, bytes):
        filesystem.pipe_file(path, source, mode=mode)
    elif is_s3(filesystem):
        part = max(_UPLOAD_PART_BYTES, -(-source.stat().st_size // _MAX_UPLOAD_PARTS))
        filesystem.put_file(str(source), path, mode=mode, chunksize=part, max_concurrency=_UPLOADS_AT_ONCE)
    else:
        filesystem.pipe_file(path, source.read_bytes(), mode=mode)


def _writable(url: str) -> str:
    return f"{url} must be a folder that can be written to"
