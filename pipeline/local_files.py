"""Files of a disk, or of one that is mounted here: found, flushed, and created under a name that must be free."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV}


def file_sha256(path: Path) -> str:
    """SHA-256 of a local file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def walk(top: str, *, pass_closed: bool) -> Iterator[tuple[str, int]]:
    """Path and size of every file below a folder, or of the one file; a link to a folder is taken for one, too.

    Unlike fsspec's, it raises OSError where a folder cannot be listed.

    Args:
        top: the folder or file; nothing where there is none.
        pass_closed: pass over folders that this process may not look into.
    """

    def fail(error: OSError) -> None:
        gone = isinstance(error, FileNotFoundError | NotADirectoryError)
        if not (gone or (pass_closed and isinstance(error, PermissionError))):
            raise error

    if Path(top).is_file():
        yield top, Path(top).stat().st_size
        return
    for folder, folders, names in os.walk(top, onerror=fail):
        links = (name for name in folders if Path(folder, name).is_symlink())
        for path in (Path(folder, name) for name in [*names, *links]):
            with contextlib.suppress(FileNotFoundError):  # gone since
                yield str(path), (path.stat() if path.exists() else path.lstat()).st_size


def flush(scratch: Path) -> None:
    """Has the content of a file on its disk before its name is."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())


def create(scratch: Path, target: Path) -> bool:
    """Gives a finished file the name `target` unless that exists; whether the name now holds this content."""
    flush(scratch)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(scratch, target)
    except FileExistsError:
        return file_sha256(scratch) == file_sha256(target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        return _rename_exclusively(scratch, target)
    return True


def _rename_exclusively(scratch: Path, target: Path) -> bool:
    """For file systems without hard links: whoever holds the folder sees whether the name is free, and takes it.

    The name appears with its whole content, and the system lets go of the folder when a writer dies.
    """
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if target.exists():
            return file_sha256(scratch) == file_sha256(target)
        scratch.rename(target)
    finally:
        os.close(folder)
    return True
