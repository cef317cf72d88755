"""Reference sets without Ray: their limits, and what is said of them."""

import pytest

from operators.errors import InputError, LimitExceeded
from pipeline import references
from pipeline.artifact import Artifact
from pipeline.parts import Part
from pipeline.pool import Pool, Source
from pipeline.progress import Progress
from pipeline.references import embed_reference, reference_facts
from pipeline.report.views.verdicts import reference_text
from pipeline.run import Run
from pipeline.storage import Store

SOURCE = Source(format="images", path="elsewhere")


@pytest.fixture
def embed(monkeypatch):
    """Embeds a made-up reference set, each shard of it given as (sound samples, truncated ones, damage)."""

    def embed(*shards, **limits):
        samples, vectors = [], []
        for number, (sound, truncated, damage) in enumerate(shards):
            counts = {"in": sound + truncated, "kept": sound}
            counts |= {"rejected:undecodable_image": truncated} if truncated else {}
            notes = {"damage": damage, "message": "why"} if damage else {}
            name = f"{number}.tar"
            samples.append(Part(name, str(number), "", sound + truncated, 0, "", counts, "", notes))
            vectors.append(Part(name, str(number), "", sound + truncated, 0, "", {"in": sound, "kept": sound}))

        def make(run, needs):
            run.artifacts["samples"] = Artifact("samples", "samples", tuple(samples))
            run.embeddings["raw", "image"] = Artifact("raw.image", "raw.image", tuple(vectors))

        monkeypatch.setattr(references, "make", make)
        monkeypatch.setattr(references, "list_shards", lambda pool: [])
        pool = Pool.model_validate({"format": "images", "path": "pool"} | limits)
        run = Run(Store("."), pool, [], 0, {}, workers=1, threads=1, progress=Progress())
        return embed_reference(run, [SOURCE], [("raw", "image")], "prune.target")

    return embed


def test_too_many_rejects_stop_the_run_and_name_the_setting(embed):
    rule = r"^prune\.target: at most 5\.00% of the 6 samples may be rejected \(pool\.max_reject_fraction\), got 5"
    with pytest.raises(LimitExceeded, match=rule + r".*undecodable_image 5; worst shards: 0\.tar 5 of 6"):
        embed((1, 5, None))


def test_too_many_damaged_shards_stop_the_run(embed):
    rule = r"^prune\.target: at most 1\.00% of the 3 shards may be damaged .* got 2: 0\.tar truncated: why; 2\.tar"
    with pytest.raises(LimitExceeded, match=rule):
        embed((3, 0, "truncated"), (3, 0, None), (0, 0, "unreadable"))


def test_a_set_without_samples_is_an_error(embed):
    with pytest.raises(InputError, match=r"^prune\.target must have at least one sample, got none in 1 shards"):
        embed((0, 0, None))


def test_what_is_let_through_is_told(embed):
    facts = reference_facts(embed((1, 4, None), (2, 1, "truncated"), max_reject_fraction=1.0))
    assert facts == {
        "samples": 8,
        "compared": 3,
        "rejected": {"undecodable_image": 5},
        "damaged": {"1.tar": "truncated"},
    }
    assert reference_text(facts) == (
        "Of 8 samples in the reference set, 3 could be compared; 5 were rejected as undecodable_image; damaged were "
        "1.tar (truncated)."
    )
    assert reference_text(None) == ""
