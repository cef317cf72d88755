"""What a run is given of earlier ones: what was found once and is applied for ever, and the verdicts that stand.

A curation that grows night by night is one run a night, over all shards of the pool. What goes shard by shard costs the
new shards alone, as their parts are the only ones that are not there. What compares samples needs these two:

- `Given`: what the first night found by looking at all rows: thresholds, centroids, trained filters. From then on each
  sample is judged by them alone, on the first night too, so that a later run which is given them gives the same bytes.
- `Standing`: the verdicts of an earlier run. The parts of shards that were judged then are taken as they are; the
  other shards are judged by those who know the rows that stand.

What cannot be done so is refused before any work by `Step.check_nightly` and `check_order`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from operators.errors import ConfigError, WorkspaceError
from pipeline.artifact import Artifact, publish_beside
from pipeline.storage import Store

if TYPE_CHECKING:
    from pipeline.steps.base import Step

Policy = Literal["append", "rebalance"]
"""What happens to the quotas of `prune`: `append` never takes back an earlier verdict and fills the quotas up with new
rows as far as it can; `rebalance` draws everything anew."""

_FIT_OF_A_NIGHT = re.compile(r"fit-[0-9a-f]{16}\.npz")


@dataclass
class Given:
    """What is found once. A run applies what is here, and adds what it had to find, by the title of the step.

    Attributes:
        thresholds: of filters that keep a share or a number: the value of the last row that the first night kept.
        fits: of steps that cluster: path in the workspace of the `given.npz` that `pipeline.steps.clusters` keeps.
        filters: of steps that train a filter: path in the workspace of the `filter.safetensors`.
    """

    thresholds: dict[str, float] = field(default_factory=dict)
    fits: dict[str, str] = field(default_factory=dict)
    filters: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """Verdicts that stand.

    A part stands for a shard when it has the address that the shard's part would get: the same samples, of which the
    same rows enter, with the same inputs. One that is lost stands no more, and its shard is judged as if it were new.
    Whoever builds this sees to it that the settings are the same, too, and puts in only what is to stand
    (`standing_titles`).

    Attributes:
        store: the workspace where the parts lie. They are listed where that is the run's own, else copied into it.
        verdicts: verdict artifacts by the title of their step, `unique_uid` among them.
    """

    store: Store
    verdicts: Mapping[str, Artifact]


def standing_titles(steps: Sequence["Step"], policy: Policy) -> list[str]:
    """The titles of the steps whose earlier verdicts stand: `unique_uid` and deduplications, and those of quotas."""
    stands = ("always", "append") if policy == "append" else ("always",)
    return ["unique_uid", *(step.title for step in steps if step.stands in stands)]


def check_order(steps: Sequence["Step"], policy: Policy) -> None:
    """Refuses verdicts that are to stand and cannot, since a draw before them lets other rows enter each time.

    Raises:
        ConfigError: names both steps.
    """
    drawn = ""
    for step in steps:
        if policy == "rebalance" and drawn and step.stands == "always" and step.again is None:
            raise ConfigError(
                f"{step.title} must come before {drawn} where quotas are drawn anew (policy rebalance, or a snapshot "
                "that is given), got it after: each draw would let other rows in, and what is whose duplicate could "
                "change; move it, or keep to policy append"
            )
        if step.stands == "append":
            drawn = step.title


def second_looks(steps: Sequence["Step"]) -> list["Step"]:
    """The steps that a night ends with besides: `Step.again`."""
    return [again for step in steps if (again := step.again)]


def bring(given: Given, source: Store, target: Store) -> Given:
    """The same in another workspace, where the files that it names are then as well.

    Raises:
        WorkspaceError: one of them is not in its own any more.
    """
    if source.url != target.url:
        kept = {path: kept_fit(source, path) for path in given.fits.values()}
        for path, place in (kept | {path: path for path in given.filters.values()}).items():
            try:
                data = source.read(place)
            except FileNotFoundError as error:
                rule = f"{source.url} must have the fits and filters of the snapshot that is given"
                raise WorkspaceError(
                    f"{rule}, got no {path}: give another snapshot, or fit anew without one"
                ) from error
            publish_beside(target, path, data)
    return Given(dict(given.thresholds), dict(given.fits), dict(given.filters))


def kept_fit(store: Store, path: str) -> str:
    """The path of the first night's fit; where that was lost, of another night's, which has the same centroids."""
    folder = path.rpartition("/")[0]
    others = [] if store.exists(path) else [name for name in store.names(folder) if _FIT_OF_A_NIGHT.fullmatch(name)]
    return f"{folder}/{others[0]}" if others else path
