"""Decides what each sample of a synthetic pool is: its concept, its caption's, whose duplicate it is, what is broken.

Legend: N samples, K concepts.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from operators.edits import EDITS
from operators.errors import ConfigError
from operators.hashing import generator
from operators.scenes import CONCEPTS, zipf_weights
from pipeline.sample_faults import FAULTS

MAX_SAMPLES_PER_SHARD = 9_000
"""img2dataset's key is the shard and four more digits; those left over are for failed downloads."""

_FAULT_FRACTION = 0.001
"""Share of the samples for each fault, at least one: with 15 that are rejects it stays far below 5 % of a pool."""
_SEEN_FRACTION = 0.8
"""Share of the last shard that lies before the cut."""


@dataclass(frozen=True, kw_only=True)
class PoolSettings:
    """What to generate. Each fraction is a share of the sound samples.

    With `labelled`, the metadata of each sample name its `concept`, as evaluation sets need; a pool has no such help.

    Raises:
        ConfigError: a value out of its range.
    """

    samples: int = 2_000
    samples_per_shard: int = 250
    seed: int = 0
    broken: bool = True
    zipf_exponent: float = 1.0
    exact_fraction: float = 0.06
    near_fraction: float = 0.08
    misaligned_fraction: float = 0.25
    labelled: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ConfigError(f"samples must be at least 1, got {self.samples}")
        if not 1 <= self.samples_per_shard <= MAX_SAMPLES_PER_SHARD:
            raise ConfigError(f"samples_per_shard must be in 1..{MAX_SAMPLES_PER_SHARD}, got {self.samples_per_shard}")
        if not 0 <= self.zipf_exponent <= 10:
            raise ConfigError(f"zipf_exponent must be in [0, 10], got {self.zipf_exponent}")
        for name in ("exact_fraction", "near_fraction", "misaligned_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.exact_fraction + self.near_fraction < 1:
            total = self.exact_fraction + self.near_fraction
            raise ConfigError(f"exact_fraction + near_fraction must be below 1, got {total}")

    @property
    def num_shards(self) -> int:
        """How many shards the samples fill, the last one perhaps in part."""
        return -(-self.samples // self.samples_per_shard)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """The decisions that one sample cannot take alone. A sample is known by its index in the pool, 0..N-1.

    Attributes:
        settings: what the plan was made from.
        concept_N: int64, index into `CONCEPTS` of what the image shows.
        told_N: int64, index into `CONCEPTS` of what the caption tells of.
        original_N: int64, the earlier sample that this one duplicates, -1 for none.
        edits: duplicate -> `exact` or one of `EDITS`.
        faults: sample -> key of `FAULTS`.
        partners: sample with `returning_key` or `repeated_uid` -> the earlier sound sample whose key or uid it takes.
        first_unseen: the sample that the cut goes through; N when nothing is cut.
    """

    settings: PoolSettings
    concept_N: NDArray[np.int64]
    told_N: NDArray[np.int64]
    original_N: NDArray[np.int64]
    edits: dict[int, str]
    faults: dict[int, str]
    partners: dict[int, int]
    first_unseen: int


def plan_pool(settings: PoolSettings) -> PoolPlan:
    """Draws a plan. Sound samples only are duplicated or misaligned, so that a sample is odd in one way at a time.

    Raises:
        ConfigError: too few samples for one of each fault.
    """
    rng = generator(settings.seed, "plan")
    weights_K = rng.permutation(zipf_weights(len(CONCEPTS), settings.zipf_exponent))

    first_unseen = _place_cut(settings) if settings.broken else settings.samples
    faults = _place_faults(settings, first_unseen, rng) if settings.broken else {}
    sound = np.setdiff1d(np.arange(settings.samples), list(faults))

    concept_N = rng.choice(len(CONCEPTS), settings.samples, p=weights_K)
    original_N, edits = _place_duplicates(settings, sound, rng)
    copies = original_N >= 0
    concept_N[copies] = concept_N[original_N[copies]]

    told_N = concept_N.copy()
    misaligned = rng.choice(sound, round(settings.misaligned_fraction * len(sound)), replace=False)
    told_N[misaligned] = _draw_others(concept_N[misaligned], weights_K, rng)

    partners = _choose_partners(settings, faults, sound, rng)
    return PoolPlan(settings, concept_N, told_N, original_N, edits, faults, partners, first_unseen)


def _draw_others(
    concept_N: NDArray[np.int64], weights_K: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """For each concept another one, drawn with the weights of those that are left."""
    other_N = np.empty_like(concept_N)
    for concept in np.unique(concept_N):
        left_K = weights_K.copy()
        left_K[concept] = 0
        shows_it = concept_N == concept
        other_N[shows_it] = rng.choice(len(left_K), shows_it.sum(), p=left_K / left_K.sum())
    return other_N


def _place_cut(settings: PoolSettings) -> int:
    start = (settings.num_shards - 1) * settings.samples_per_shard
    return start + int(_SEEN_FRACTION * (settings.samples - start))


def _place_faults(settings: PoolSettings, first_unseen: int, rng: np.random.Generator) -> dict[int, str]:
    """Faults lie before the cut and never in a shard's first two rows: there a returning key finds its partner."""
    names = [name for name in FAULTS for _ in range(max(1, round(_FAULT_FRACTION * settings.samples)))]
    places = [index for index in range(first_unseen) if index % settings.samples_per_shard >= 2]
    if len(places) < len(names):
        raise ConfigError(
            f"{len(names)} samples of a pool must be broken, before the cut and not in the first two rows of a shard; "
            f"make a larger one or none broken (--no-broken), got room for {len(places)}"
        )
    indices = rng.choice(places, len(names), replace=False).tolist()
    return dict(zip(indices, names, strict=True))


def _place_duplicates(
    settings: PoolSettings, sound: NDArray[np.int64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Each duplicate copies an earlier sample that is sound and no duplicate; the pool's first row is never one."""
    num_exact, num_near = round(settings.exact_fraction * len(sound)), round(settings.near_fraction * len(sound))
    copies = rng.choice(sound[1:], min(num_exact + num_near, len(sound) - 1), replace=False)
    kinds = ["exact"] * num_exact + [EDITS[turn % len(EDITS)] for turn in range(num_near)]
    singles = np.setdiff1d(sound, copies)
    original_N = np.full(settings.samples, -1)
    original_N[copies] = singles[rng.integers(np.searchsorted(singles, copies))]
    return original_N, dict(zip(copies.tolist(), kinds, strict=False))


def _choose_partners(
    settings: PoolSettings, faults: dict[int, str], sound: NDArray[np.int64], rng: np.random.Generator
) -> dict[int, int]:
    """A repeated uid is an earlier sample's, of any shard; a returning key one of its own shard, two rows back or more.

    Each key returns once: a second return right after the first would join its run of members.
    """
    partners: dict[int, int] = {}
    for index, name in sorted(faults.items()):
        if name == "repeated_uid":
            partners[index] = int(rng.choice(sound[sound < index]))
        elif name == "returning_key":
            start = index - index % settings.samples_per_shard
            near = sound[(sound >= start) & (sound <= index - 2)]
            partners[index] = int(rng.choice(np.setdiff1d(near, list(partners.values()))))
    return partners
