"""What a snapshot gives to a run, and whether the run's settings are those that the snapshot was made by."""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from operators.errors import ConfigError
from pipeline.curation import Curation, GivenSnapshot
from pipeline.embed import samples_folder
from pipeline.given import Given, Policy, Standing, bring, standing_titles
from pipeline.manifests import read_recorded
from pipeline.models import decide_models, model_identity
from pipeline.record import recorded_settings
from pipeline.snapshots import Snapshot, read_snapshot
from pipeline.storage import Store

_LIMITS = ("max_pixels", "max_member_bytes", "chunk_samples")
"""Settings of a pool that decide about what is read; those of a source show in its shards."""


def read_state(store: Store, snapshot: Snapshot, config: Curation, policy: Policy) -> tuple[Given, Standing]:
    """What a run goes by that comes after a snapshot, in a workspace of its own or in the same.

    Args:
        store: the workspace of the snapshot.
        snapshot: the record.
        config: of the run.
        policy: whether the verdicts of quotas stand.

    Raises:
        WorkspaceError: a manifest or a file that the snapshot names is not there any more.
        DamagedError: one is not what was written.
    """
    given = bring(_found_once(snapshot), store, config.store)
    return given, _standing(store, snapshot, config, policy)


def read_given(config: Curation) -> tuple[Given | None, Standing | None]:
    """What the `given` of a config stands for; nothing where there is none. Raises as `check_given`."""
    if config.given is None:
        return None, None
    return read_state(config.given.store, check_given(config, config.given), config, "rebalance")


def find_given(config: Curation) -> tuple[Given | None, Standing | None]:
    """The same for a dry run, which brings nothing along: nothing, too, where no run has brought it yet."""
    if config.given is None:
        return None, None
    snapshot = check_given(config, config.given)
    given = _found_once(snapshot)
    if not all(config.store.exists(path) for path in [*given.fits.values(), *given.filters.values()]):
        return None, None
    return given, _standing(config.given.store, snapshot, config, "rebalance")


def _found_once(snapshot: Snapshot) -> Given:
    return Given(**{name: dict(found) for name, found in snapshot["given"].items()})


def _standing(store: Store, snapshot: Snapshot, config: Curation, policy: Policy) -> Standing:
    titles = [title for title in standing_titles(config.steps, policy) if title in snapshot["verdicts"]]
    return Standing(store, {title: read_recorded(store, snapshot["artifacts"][title]) for title in titles})


def check_given(config: Curation, given: GivenSnapshot) -> Snapshot:
    """The snapshot that a config is given, whose findings it must be able to use.

    Raises:
        WorkspaceError: there is no such snapshot.
        ConfigError: the steps that it is about have other settings.
    """
    store = given.store
    snapshot = read_snapshot(store, given.snapshot)
    titles = {title for found in snapshot["given"].values() for title in found}
    titles |= set(standing_titles(config.steps, "rebalance")) - {"unique_uid"}
    if found := list(_differences(snapshot, config, titles)):
        what = f"settings of snapshot {snapshot['id']} of {store.url} that is given"
        raise ConfigError(f"the {what} must be those of this config, got {'; '.join(found)}")
    return snapshot


def check_same(snapshot: Snapshot, config: Curation) -> None:
    """Refuses settings by which the verdicts of a snapshot were not made. Exports and resources may differ.

    Raises:
        ConfigError: names what differs.
    """
    titles = [step.title for step in config.steps]
    before = [_title(step) for step in snapshot["config"]["steps"]]
    if titles != before:
        found = [f"steps: {', '.join(titles) or 'none'}, not {', '.join(before) or 'none'}"]
    else:
        found = list(_differences(snapshot, config, titles))
    if found:
        raise ConfigError(
            f"a nightly config must select as that of snapshot {snapshot['id']} did, got {'; '.join(found)}: set this "
            "back, or begin anew with another workspace (exports, resources, deny and nightly may change at any time)"
        )


def identities(config: Curation) -> dict[str, str]:
    """What each model of a config computes, by name: equal where embeddings are."""
    models = decide_models(config.models, config.resources.gpus)
    return {name: model_identity(settings) for name, settings in models.items()}


def contents(config: Curation) -> dict[str, dict[str, str]]:
    """What the settings of each step name and do not hold, by title: `Step.content`, where there is any."""
    return {step.title: dict(content) for step in config.steps if (content := step.content())}


def renewed(snapshot: Snapshot, config: Curation, now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The titles of the steps that have something else to go by than a snapshot, and to look again (`Step.again`).

    Args:
        snapshot: the record.
        config: of the night.
        now: `contents` of the config.
    """
    before = snapshot.get("contents", {})
    return [step.title for step in config.steps if step.again and before.get(step.title) != now.get(step.title)]


def _differences(snapshot: Snapshot, config: Curation, titles: Collection[str]) -> Iterator[str]:
    """What a config has otherwise, of all that decides about the steps of these titles."""
    ours, theirs = recorded_settings(config), snapshot["config"]
    if ours["seed"] != theirs["seed"]:
        yield f"seed: {ours['seed']}, not {theirs['seed']}"
    pools = [{name: settings["pool"][name] for name in _LIMITS} for settings in (ours, theirs)]
    yield from _unlike("pool", *pools)
    if pools[0] == pools[1] and samples_folder(config.pool) != snapshot["artifacts"]["samples"]["folder"]:
        yield "a version of Winnow that reads shards in another way"
    steps = [{_title(step): step for step in settings["steps"]} for settings in (ours, theirs)]
    renewable = {step.title for step in config.steps if step.again}
    for title in titles:
        if title not in renewable:
            yield from _unlike(f"steps.{title}", *(found.get(title) for found in steps))
    for step in config.steps:
        then = snapshot.get("contents", {}).get(step.title)
        if then and step.title in titles and step.title not in renewable:
            now = step.content()
            changed = sorted(name for name in now.keys() & then.keys() if now[name] != then[name])
            yield from (f"steps.{step.title}.{name}: another content than it had then" for name in changed)
    used = {model for step in config.steps if step.title in titles for model, _ in step.embeddings()}
    models = identities(config)
    for name in sorted(used & snapshot["models"].keys()):
        if models[name] != snapshot["models"][name]:
            yield _unlike_model(name, json.loads(models[name]), json.loads(snapshot["models"][name]))


def _unlike_model(name: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """How two identities of a model differ."""
    before = theirs.get("precision")
    if before is None or {**ours, "precision": before} != theirs:
        return f"models.{name}: another model or other weights"
    return (
        f"models.{name}.precision: {ours.get('precision')}, not {before} (what auto stands for depends on "
        f"resources.gpus and on the machine that starts the night: set models.{name}.precision to {before})"
    )


def _unlike(path: str, ours: Any, theirs: Any) -> Iterator[str]:
    """The keys below which two settings differ, each with both values."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for name in sorted(ours.keys() | theirs.keys()):
            yield from _unlike(f"{path}.{name}", ours.get(name), theirs.get(name))
    elif ours != theirs:
        yield f"{path}: {ours!r}, not {theirs!r}"


def _title(step: Mapping[str, Any]) -> str:
    return str(step["name"] or step["step"])
