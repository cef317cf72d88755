"""Plans, without Ray: what is extrapolated, what formulas give, and what is reused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from operators.errors import ConfigError, InputError
from pipeline.artifact import Artifact
from pipeline.curation import Curation
from pipeline.listing import list_shards
from pipeline.parts import Part
from pipeline.plan.encoding import measure_encoding
from pipeline.plan.formulas import FORMULAS, cost, kind_of
from pipeline.plan.machines import Machines
from pipeline.plan.plan import Plan, add_up, all_needs, make_plan
from pipeline.plan.rates import Rates, line_through, measure_numeric, read_overrides
from pipeline.plan.rehearsal import Line, decided_at_random, rehearse
from pipeline.plan.reuse import Found, find
from pipeline.plan.sample import Sampled, sample_pool
from pipeline.plan.start import measure_start
from pipeline.plan.table import as_json, duration, print_plan, size
from pipeline.plan.work import Inputs, Work
from tests.pipeline.test_step_versions import CLASSES
from tests.small_pools import sound, tar_bytes, write_tar

START = {"seconds": 1.0, "bytes": 2e8}
RATES = {
    "worker": START,
    "driver": START,
    "numeric": {"seconds": 3.0, "bytes": 4e8},
    "row_seconds": 1e-6,
    "product_seconds": 1e-11,
    "compared_seconds": 1e-6,
    "pair_seconds": 1e-11,
    "rank_seconds": 1e-7,
    "repeat_seconds": 1e-7,
    "encodings": {"raw.image": {"start": START}, "raw.text": {"start": START}},
}
MACHINES = Machines(cpus=4)
STEPS = [
    {"step": "rules", "min_side": 8},
    {"step": "exact_dedup"},
    {"step": "semantic_dedup", "model": "raw", "clusters": 2, "epsilon": 0.05},
    {"step": "prune", "method": "dbp", "model": "raw", "clusters": 2, "keep_fraction": 0.5},
]


@pytest.fixture
def config(tmp_path) -> Curation:
    (tmp_path / "pool").mkdir()
    for number in range(5):
        write_tar(tmp_path / f"pool/{number}.tar", sound(6))
    return Curation.model_validate(
        {
            "pool": {"format": "webdataset", "path": f"{tmp_path}/pool/*.tar"},
            "workspace": f"{tmp_path}/work",
            "models": {"raw": {"library": "pixels", "size": 4}},
            "steps": STEPS,
            "export": [{"format": "uids", "path": f"{tmp_path}/out/subset.npy"}],
        }
    )


@pytest.fixture
def sampled(config) -> Sampled:
    return sample_pool(config.pool, list_shards(config.pool), config.models, all_needs(config))


@pytest.fixture
def rates() -> Rates:
    encoding = {"dim": 48, "row_bytes": 90.0, "cpu_seconds": 1e-3, "start": START}
    return Rates.model_validate({**RATES, "encodings": {"raw.image": encoding, "raw.text": encoding}})


def scaled(config: Curation, sampled: Sampled, rates: Rates, samples: int, machines: Machines = MACHINES) -> Plan:
    return add_up(config, sampled.scaled(samples, samples // 1000), rates, machines, Found(()))


def works(plan: Plan) -> dict[str, Work]:
    return {step.name: step.work for step in plan.steps}


def test_what_time_costs():
    machines = Machines(cpus=10, gpus=2, gpu="a100", cpu_price=0.5, gpu_price=3.0)
    assert machines.dollars(cpu_seconds=7200, gpu_seconds=1800) == 2.5
    assert machines.wall_seconds(cpu_seconds=100, gpu_seconds=50) == 25
    assert machines.gpu_seconds(312e12 * 0.35) == pytest.approx(1.0)
    with pytest.raises(ConfigError, match=r"gpu must be one of a100, .*, got 'abacus'"):
        Machines(cpus=1, gpu="abacus")


def test_work_adds_up_and_the_largest_worker_counts():
    first, second = Work(read=1, cpu_seconds=2, worker_bytes=5, kept=0.5), Work(read=3, worker_bytes=4, kept=None)
    assert first + second == Work(read=4, cpu_seconds=2, worker_bytes=5, kept=None)


def test_numbers_for_people():
    assert [size(count) for count in (0, 999, 1_500, 2.34e12)] == ["0 B", "999 B", "1.5 kB", "2.34 TB"]
    assert [duration(s) for s in (12.34, 600, 36_000, 864_000)] == ["12.3 s", "10 min", "10 h", "10 days"]


def test_a_sample_of_whole_shards_says_what_the_pool_is(config, sampled):
    facts = sampled.facts
    assert (facts.shards, facts.samples, facts.sampled_shards, facts.sampled_samples, facts.decoded) == (
        5,
        30,
        3,
        18,
        18,
    )
    assert facts.bytes == sum(shard.size for shard in list_shards(config.pool))
    assert facts.reject_fraction == 0
    assert sampled.table.num_rows == 18
    assert sampled.table["width"].null_count == 0
    assert len(set(sampled.table["uid"].to_pylist())) == 18
    assert sampled.inputs["raw.image"].shape == (18, 4, 4, 3)


def test_large_shards_are_read_at_their_beginning(config, monkeypatch, tmp_path):
    (tmp_path / "large").mkdir()
    write_tar(tmp_path / "large/0.tar", sound(400))
    pool = config.pool.model_copy(
        update={"sources": (config.pool.sources[0].model_copy(update={"path": f"{tmp_path}/large/*.tar"}),)}
    )
    monkeypatch.setattr("pipeline.plan.sample.READ_BYTES", 80_000)
    facts = sample_pool(pool, list_shards(pool), {}, []).facts
    assert facts.sampled_samples < 200
    assert facts.samples == pytest.approx(400, rel=0.05)
    assert facts.decoded == 96


def test_a_pool_on_s3_is_sampled_the_same_way(config, sampled, s3_server):
    import s3fs

    storage = {"endpoint_url": s3_server, "key": "k", "secret": "s"}
    fs = s3fs.S3FileSystem(**storage, skip_instance_cache=True)
    fs.mkdir("planned")
    for number in range(5):
        fs.pipe(f"planned/pool/{number}.tar", tar_bytes(sound(6)))
    source = config.pool.sources[0].model_copy(update={"path": "s3://planned/pool/*.tar", "storage": storage})
    pool = config.pool.model_copy(update={"sources": (source,)})
    there = sample_pool(pool, list_shards(pool), config.models, all_needs(config))
    measured = {"read_seconds": 0.0, "decode_seconds": 0.0}
    assert replace(there.facts, **measured) == replace(sampled.facts, **measured)
    assert there.table.drop_columns(["offset"]).equals(sampled.table.drop_columns(["offset"]))


def test_a_pool_is_extrapolated_by_what_its_shards_agree_on(config, tmp_path):
    """One of five shards of six samples is many times as large as the others: six samples a shard it is."""
    first, *others = sound(6)
    write_tar(tmp_path / "pool/0.tar", [{**first, "jpg": first["jpg"] + bytes(200_000)}, *others])
    shards = list_shards(config.pool)
    assert sample_pool(config.pool, shards, {}, [], count=5).facts.samples == 30


def test_rejects_are_seen(config, tmp_path):
    broken = [{**sample, "jpg": b"no image"} for sample in sound(6)]
    write_tar(tmp_path / "pool/2.tar", broken)
    sampled = sample_pool(config.pool, list_shards(config.pool), {}, [])
    assert sampled.facts.reject_fraction == pytest.approx(1 / 3)


def test_a_pool_that_cannot_be_sampled(config, tmp_path):
    for path in (tmp_path / "pool").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"must hold at least one sample, got none in 0.tar"):
        sample_pool(config.pool, list_shards(config.pool), {}, [])


def test_a_part_costs_by_itself_and_by_its_rows(sampled):
    with rehearse(sampled.table) as rehearsal:
        assert rehearsal.samples.bytes.part > 500
        assert 16 < rehearsal.samples.bytes.row < 500
        half = rehearsal.verdicts("half", decided_at_random(0.5, "why", {"value": "number"}), {"uid": "uid"})
        assert 0.1 < half.kept < 0.9
        again = rehearsal.verdicts("again", decided_at_random(1.0, "why", {}), {"uid": "uid"})
        assert again.kept == 1.0
        assert again.bytes.row < half.bytes.row
        assert rehearsal.ledger().bytes.row > 16
    assert Line(part=10, row=2).of(parts=3, rows=5) == 40


def test_every_kind_of_step_has_a_formula():
    kinds = set()
    for step in CLASSES:
        fields = step.model_fields
        (kind,) = fields["step"].annotation.__args__
        methods = getattr(fields.get("method"), "annotation", None)
        kinds.add(f"{kind}.{methods.__args__[0]}" if methods else kind)
    assert kinds - {"unique_uid"} == set(FORMULAS)


@pytest.mark.parametrize(
    "step",
    [
        *STEPS,
        {"step": "deny", "uids": "list.txt"},
        {"step": "score", "model": "both"},
        {"step": "filter", "column": "width", "keep_fraction": 0.25, "diversity": {"model": "raw", "clusters": 2}},
        {"step": "filter", "column": "width", "min": 3},
        {"step": "sweep", "model": "raw", "clusters": [2, 3]},
        {"step": "image_based", "model": "raw", "clusters": 2, "reference": ["POOL"]},
        {"step": "decontaminate", "model": "raw", "against": ["POOL"], "epsilon": 0.05},
        {"step": "binary_embeddings", "model": "raw", "trusted": ["POOL"]},
        {"step": "binary_images", "trusted": ["POOL"]},
        {"step": "masked_autoencoder", "trusted": ["POOL"]},
        {"step": "prune", "method": "hierarchical", "model": "raw", "clusters": 4, "levels": [2], "keep": 9},
        {"step": "prune", "method": "prototypes", "model": "raw", "clusters": 4, "keep_fraction": 0.5},
        {"step": "prune", "method": "random", "keep_fraction": 0.5},
        {"step": "python", "function": "own:function"},
        {"step": "intersection", "of": [{"step": "rules", "min_side": 8}, {"step": "filter", "draw": True, "keep": 9}]},
    ],
    ids=lambda step: f"{step['step']}.{step.get('method', '')}",
)
def test_every_kind_of_step_costs_something(config, sampled, rates, step):
    source = config.pool.sources[0].model_dump(exclude_none=True, exclude={"storage"})
    text = json.dumps(step).replace('"POOL"', json.dumps(source)).replace('"both"', '"clip"')
    models = {"raw": {"library": "pixels", "size": 4}, "clip": {"library": "stored", "image": "a", "text": "b"}}
    clip = {"library": "open_clip", "name": "ViT-B-32", "weights": "random"}
    read = {"pool": config.pool, "workspace": config.workspace, "models": {**models, "clip": clip}}
    (made,) = Curation.model_validate({**read, "steps": [json.loads(text)]}).steps
    encodings = {**rates.encodings, **{f"clip.{m}": rates.encodings["raw.image"] for m in ("image", "text")}}
    with rehearse(sampled.table) as rehearsal:
        inputs = Inputs(
            config.pool,
            read["models"],
            1,
            sampled,
            rates.model_copy(update={"encodings": encodings}),
            MACHINES,
            rehearsal,
        )
        small, large = cost(inputs, made, 1_000), cost(inputs, made, 1_000_000)
    assert kind_of(made) in FORMULAS
    assert 0 < small.written < large.written
    assert min(small.cpu_seconds, large.cpu_seconds) > 0
    assert small.worker_bytes <= large.worker_bytes
    assert small.kept is None or 0 <= small.kept <= 1


def test_costs_grow_with_the_pool(config, sampled, rates, monkeypatch):
    """A million samples: decoding and k-means by hand, from the rates."""
    monkeypatch.setattr("pipeline.plan.rehearsal.time.process_time", lambda: 0.0)  # what is written is not timed
    plan = scaled(config, sampled, rates, 1_000_000)
    work = works(plan)
    facts = plan.facts
    assert facts.shards == 1000
    assert facts.bytes == pytest.approx(sampled.facts.bytes / 30 * 1e6)
    assert work["samples"].read > facts.bytes
    least = 1e6 * (facts.read_seconds + facts.decode_seconds)
    assert least < work["samples"].cpu_seconds
    # It is needed after rules, for those that stand, of which each costs a millisecond to encode.
    assert work["raw.image"].cpu_seconds > 1e6 * 1e-3
    assert work["raw.image"].stored == pytest.approx(90e6, rel=0.05)
    assert work["ledger"].stored > 16e6
    assert work["export uids"].stored == 500_000 * 16
    ten = works(scaled(config, sampled, rates, 10_000_000))
    assert ten["samples"].cpu_seconds == pytest.approx(10 * work["samples"].cpu_seconds, rel=0.05)
    # Two clusters only: members are compared in pairs.
    assert ten["semantic_dedup"].cpu_seconds > 50 * work["semantic_dedup"].cpu_seconds


def test_gpus_take_over_encoding_and_kmeans(config, sampled, rates):
    encoding = rates.encodings["raw.image"].model_copy(update={"gpu_seconds": 1e-4})
    on_gpus = rates.model_copy(update={"encodings": {"raw.image": encoding}})
    machines = Machines(cpus=64, gpus=8)
    plan = scaled(config, sampled, on_gpus, 1_000_000, machines)
    work = works(plan)
    assert work["raw.image"].gpu_seconds == pytest.approx(100)
    assert work["raw.image"].cpu_seconds < works(scaled(config, sampled, rates, 1_000_000))["raw.image"].cpu_seconds
    assert work["prune"].gpu_seconds > 0
    assert plan.dollars(Work(gpu_seconds=3600)) == 2.5
    assert plan.wall_seconds >= plan.total.gpu_seconds / 8


def test_rows_are_known_as_far_as_they_can_be(config, sampled, rates):
    plan = scaled(config, sampled, rates, 10_000)
    rows = {step.name: (step.rows_in, step.rows_out, step.is_bound) for step in plan.steps}
    assert rows["rules"] == (10_000, 10_000, False)
    assert rows["exact_dedup"] == (10_000, None, False)
    assert rows["semantic_dedup"] == (10_000, None, True)
    assert rows["prune"] == (10_000, 5_000, True)
    assert rows["ledger"] == (10_000, 10_000, False)
    assert rows["export uids"] == (5_000, 5_000, True)
    assert rows["start-up"] == (None, None, False)


def test_what_is_read_already_costs_nothing(config, sampled, rates):
    found = Found(list_shards(config.pool), fresh=1)
    some = works(add_up(config, sampled, rates, MACHINES, found))["samples"]
    all_ = works(add_up(config, sampled, rates, MACHINES, replace(found, fresh=5)))["samples"]
    assert some.cpu_seconds < all_.cpu_seconds
    assert some.stored == pytest.approx(all_.stored / 5, rel=0.01)


def test_another_model_is_all_that_is_embedded_anew(config, sampled, rates):
    """Where the samples are there and its embeddings are not, a first model reads the images again."""
    first = config.model_copy(update={"steps": config.steps[2:]})
    samples = Artifact("samples", "s", [Part("a", "a", "p", 30, 1, "", {"in": 30, "kept": 30})])
    found = Found(list_shards(config.pool), {"samples": samples})
    work = works(add_up(first, sampled, rates, MACHINES, found))
    assert work["samples"] == Work()
    assert work["raw.image"].cpu_seconds > 30 * 1e-3
    assert work["raw.image"].read >= sampled.facts.bytes


def test_a_whole_plan_without_ray(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ray.init", None)
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(RATES))
    plan = make_plan(config, MACHINES, read_overrides(str(path)))
    assert plan.samples == 30
    assert plan.rates.product_seconds == 1e-11
    assert plan.rates.encodings["raw.image"].dim == 48
    print_plan(plan)
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[:3] == ["step", "kind", "state"]
    assert [line.split()[0] for line in lines[6:18]] == [
        "samples",
        "unique_uid",
        "rules",
        "exact_dedup",
        "raw.image",
        "semantic_dedup",
        "prune",
        "ledger",
        "export",
        "report",
        "start-up",
        "total",
    ]
    assert "18 samples of 3 shards were read, 18 decoded" in lines[-4]
    path.write_text(json.dumps(as_json(plan)))
    again = Rates.model_validate(read_overrides(str(path)))
    assert again == plan.rates
    assert not (tmp_path / "work").exists()


def test_what_there_is_of_nothing(config):
    found = find(config)
    assert (found.fresh, found.samples, found.is_whole, found.artifacts) == (5, None, False, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "rates must hold names with numbers, got .1. in"),
        ("{encodings: {raw.image: 3}}", "rates must hold names with numbers, got 3 in"),
        ("{rank_seconds: -1}", "rates.rank_seconds must be one of the rates of a plan: .*greater"),
        ("{speed: 3}", "rates.speed must be one of the rates of a plan"),
        ("{encodings: {raw.image: {dimension: 3}}}", "rates.encodings.raw.image.dimension must be one of the rates"),
    ],
)
def test_rates_that_are_none(config, tmp_path, text, message):
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        make_plan(config, MACHINES, {**RATES, **read_overrides(str(path))})


def test_starting_a_process_costs_something():
    start = measure_start()
    assert 0.1 < start.seconds < 60
    assert 5e7 < start.bytes < 2e9


def test_numeric_rates_are_positive(monkeypatch):
    monkeypatch.setattr("pipeline.plan.rates._ROWS", 4096)
    rates = measure_numeric(32)
    assert set(rates) == {"row_seconds", "product_seconds", "compared_seconds", "pair_seconds"}
    assert rates["product_seconds"] > 0
    assert rates["pair_seconds"] > 0


def test_a_slope_that_noise_hides_is_not_taken_for_none():
    assert line_through(32, 512, 4.2, 9.0) == pytest.approx((3.88, 0.01))
    assert line_through(32, 512, 0.1, 6.0) == (0.0, pytest.approx(5.9 / 480))
    assert line_through(32, 512, 5.0, 4.0) == (0.0, 4 / 512)


def test_what_a_stopped_pass_has_embedded_is_not_to_be_done_again(config, sampled, rates):
    shards = list_shards(config.pool)
    whole = add_up(config, sampled, rates, MACHINES, Found(shards))
    samples = Artifact("samples", "s", [Part("a", "a", "p", 30, 1, "", {"in": 30, "kept": 30})])
    begun = add_up(config, sampled, rates, MACHINES, Found(shards, {"samples": samples}, begun={"raw.image": 12}))
    (before,), (after,) = ([step for step in plan.steps if step.name == "raw.image"] for plan in (whole, begun))
    assert before.rows_in - after.rows_in == 12


def test_more_clusters_than_rows_are_refused_before_they_come(config, sampled, rates):
    asking = config.model_copy(update={"steps": [config.steps[2].model_copy(update={"clusters": 61})]})
    rule = "semantic_dedup.clusters must be at most the about 30 samples of the pool, got 61"
    with pytest.raises(ConfigError, match=rule):
        add_up(asking, sampled, rates, MACHINES, Found(()))


def test_operations_of_a_model_are_counted(config, tmp_path):
    """A tower of one convolution-free block is counted as its matrix products: two operations each."""
    from operators.encoders.settings import OpenClipSettings

    towers = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
    }
    (tmp_path / "towers.json").write_text(json.dumps(towers))
    settings = OpenClipSettings(library="open_clip", name=str(tmp_path / "towers.json"), weights="random")
    pixels = np.zeros((2, 32, 32, 3), np.uint8)
    found = measure_encoding(settings, "image", pixels, Machines(cpus=1, gpus=1), {"start"})
    tokens, width = 5, 64
    patches = 2 * 4 * (16 * 16 * 3) * width
    block = 2 * tokens * 12 * width * width + 2 * 2 * tokens * tokens * width
    assert found.flops == pytest.approx(patches + block + 2 * width * 8, rel=0.01)
    assert found.gpu_seconds == found.flops / (989e12 * 0.35)
    assert found.origin == "counted operations"
    assert found.dim == 8


def test_embeddings_of_a_pool_are_taken_as_they_are(config):
    from operators.encoders.settings import StoredSettings

    rows = np.random.default_rng(0).standard_normal((64, 32), dtype=np.float32)
    found = measure_encoding(StoredSettings(library="stored", image="a"), "image", rows, MACHINES)
    assert (found.dim, found.cpu_seconds, found.start, found.origin) == (32, 0.0, None, "the pool's own")
    assert 50 < found.row_bytes < 70
