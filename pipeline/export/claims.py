"""Which files outside the workspace are ours: what an export says it will write, before it writes anything.

    exports/<address>/claim.json            the files that an export may write, and where
    exports/<address>/files/<name>.json     receipts of what it has written so far
    exports/<address>.json                  its receipt; written last

A file that no claim of this workspace lists belongs to somebody else and is never touched.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass

from operators.errors import WorkspaceError
from pipeline.export.target import Target
from pipeline.integrity import read_sealed, sealed
from pipeline.storage import Store

FOLDER = "exports"


@dataclass(frozen=True)
class Claim:
    """What one export may write.

    Attributes:
        address: names the export by all that its files depend on.
        format: as in the config.
        url: its folder or file, absolute.
        folder_url: the folder that the names are relative to.
        names: of the files.
    """

    address: str
    format: str
    url: str
    folder_url: str
    names: tuple[str, ...]

    @property
    def home(self) -> str:
        """The export's folder in the workspace."""
        return f"{FOLDER}/{self.address}"

    @property
    def path(self) -> str:
        """The claim itself, in the workspace."""
        return f"{self.home}/claim.json"

    @property
    def receipt(self) -> str:
        """The export's receipt in the workspace."""
        return f"{self.home}.json"

    @property
    def receipts(self) -> str:
        """The folder of the receipts of its files."""
        return f"{self.home}/files"

    @property
    def urls(self) -> Iterator[str]:
        """The files, absolute."""
        return (f"{self.folder_url.rstrip('/')}/{name}" for name in self.names)

    def is_older(self, other: "Claim") -> bool:
        """Whether another claim is that of the same export under another config or over another pool."""
        return (self.format, self.url) == (other.format, other.url) and self.address != other.address


def read_claims(workspace: Store, mine: Claim | None = None) -> list[Claim]:
    """The claims of all exports of a workspace.

    A store's listing may lag behind: this export's claim is asked for by name, and one that was withdrawn is none.

    Args:
        workspace: where they are.
        mine: the claim of this export, if it has one yet.

    Raises:
        DamagedError: one is not what was written.
    """
    listed = {name for name in workspace.find(FOLDER) if name.endswith("/claim.json")}
    records = []
    for name in sorted(listed | ({mine.path} if mine else set())):
        with contextlib.suppress(FileNotFoundError):
            records.append(read_sealed(workspace, name))
    return [Claim(**record | {"names": tuple(record["names"])}) for record in records]


def check_target(target: Target, mine: Claim, claims: list[Claim], sizes: Mapping[str, int]) -> None:
    """Refuses to touch what is not ours.

    Args:
        target: where the export goes.
        mine: its claim.
        claims: all claims of the workspace.
        sizes: what lies there already.

    Raises:
        WorkspaceError: a file belongs to nobody we know, or to another export of this workspace.
    """
    check_owned(target, claims, sizes)
    siblings = {
        url for claim in claims if claim.address != mine.address and not mine.is_older(claim) for url in claim.urls
    }
    for name in sizes.keys() & set(mine.names):
        if (url := target.url_of(name)) in siblings:
            raise WorkspaceError(f"two exports must not write the same file, got {url}")


def check_owned(target: Target, claims: Iterable[Claim], sizes: Mapping[str, int]) -> None:
    """Raises WorkspaceError where a file of a target is in none of the claims."""
    owned = {url for claim in claims for url in claim.urls}
    for name in sizes:
        if (url := target.url_of(name)) not in owned:
            raise WorkspaceError(
                f"export path must be new, empty or from an export of this workspace, got {url}, which is not: "
                "choose another path or remove it"
            )


def supersede(workspace: Store, mine: Claim, claims: list[Claim]) -> list[Claim]:
    """Makes a claim, after withdrawing the receipts of older exports to the same place, which are about to be untrue.

    Returns:
        the older claims, still standing, so that a killed export leaves no file without an owner.
    """
    older = [claim for claim in claims if mine.is_older(claim)]
    for claim in older:
        workspace.remove(claim.receipt)
        workspace.remove(claim.receipts)
    workspace.replace(mine.path, sealed(asdict(mine)))
    return older


def clear(workspace: Store, target: Target, mine: Claim, older: list[Claim]) -> None:
    """Removes the files of older exports that are not part of this one, then their claims."""
    there, keep = target.sizes(), set(mine.names)
    for claim in older:
        for name in claim.names:
            if name in there and name not in keep:
                target.store.remove(name)
        workspace.remove(claim.home)
