"""The generated pool against its own truth: read back with the standard library, judged by hand-written rules."""

import contextlib
import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from itertools import groupby

import pyarrow.parquet as pq
import pytest
from PIL import Image

from operators.edits import EDITS
from operators.errors import ConfigError, InputError
from operators.images import UnusableImage, decode
from operators.rejects import Damage, Reason
from operators.scenes import CONCEPTS
from operators.uids import derive_uid
from pipeline.generate import TRUTH_SCHEMA, generate_pool
from pipeline.listing import list_shards
from pipeline.pool import Pool
from pipeline.pool_plan import PoolSettings, plan_pool
from pipeline.readers import read_shard
from pipeline.sample_faults import FAULTS, GENERATED_MEMBER_LIMIT

SETTINGS = PoolSettings(samples=420, samples_per_shard=150, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    generate_pool(folder, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def truth(folder):
    return pq.read_table(folder / "truth.parquet").to_pylist()


@pytest.fixture(scope="module")
def runs(folder):
    """(shard, row) -> (key, [(member, data)]) by the rule of the design: adjacent members with one key."""
    found = {}
    for path in sorted((folder / "pool").glob("*.tar")):
        members = []
        with tarfile.open(path) as tar:
            try:
                for member in tar:
                    members.append((member, tar.extractfile(member).read() if member.isreg() else b""))
            except tarfile.ReadError:
                members.append((member, None))
        keyed = groupby(members, key=lambda pair: re.match(r"(.*/)?[^./]*", pair[0].name)[0])
        found |= {(path.name, row): (key, list(run)) for row, (key, run) in enumerate(keyed)}
    return found


def metadata_in(path):
    """The JSON of every sample that has one that can be read."""
    found = []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".json"):
                with contextlib.suppress(ValueError):
                    found.append(json.loads(tar.extractfile(member).read()))
    return [metadata for metadata in found if isinstance(metadata, dict)]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def by_extension(run):
    return {member.name.rpartition(".")[2].lower(): data for member, data in run}


def judge(row, runs, uids_seen):
    """The reason for which a sample cannot be used, by looking at it; `ok` when there is none."""
    key, run = runs[row["shard"], row["row"]]
    parts, members = by_extension(run), [member for member, _ in run]
    images = [data for ext, data in parts.items() if ext in ("jpg", "png", "webp")]
    if any(not member.isreg() or member.name.startswith(("/", "..")) for member in members):
        return "unsafe_name"
    if any(runs[row["shard"], earlier][0] == key for earlier in range(row["row"])):
        return "split_key"
    if len(parts) < len(run):
        return "duplicate_key"
    if any(member.size > GENERATED_MEMBER_LIMIT for member in members):
        return "member_too_large"
    if not images:
        return "missing_image"
    if "txt" not in parts:
        return "missing_text"
    try:
        uid = json.loads(parts["json"]).get("uid")
        parts["txt"].decode()
        decode(images[0], max_pixels=100_000_000)
    except json.JSONDecodeError:
        return "bad_json"
    except UnicodeDecodeError:
        return "bad_text_encoding"
    except UnusableImage as unusable:
        return unusable.reason
    if uid in uids_seen:
        return "duplicate_uid"
    uids_seen.add(uid)
    return "ok"


def test_a_killed_attempt_leaves_no_folder_and_is_replaced(tmp_path, monkeypatch):
    settings = PoolSettings(samples=30, samples_per_shard=20, broken=False)

    def die(*args):
        raise KeyboardInterrupt

    folder = tmp_path / "pool"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.generate.pq.write_table", die)
        with pytest.raises(KeyboardInterrupt):
            generate_pool(folder, settings)
    assert not folder.exists()
    generate_pool(folder, settings)
    assert sorted(path.name for path in (folder / "pool").glob("*.tar")) == ["00000.tar", "00001.tar"]
    assert (folder / "truth.parquet").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_the_truth_has_one_row_for_each_sample(truth):
    assert len(truth) == SETTINGS.samples
    places = [(row["shard"], row["row"]) for row in truth]
    assert places == sorted(set(places))
    assert set(truth[0]) == set(TRUTH_SCHEMA.names)


def test_every_sample_is_what_the_truth_expects(truth, runs):
    uids_seen = set()
    judged = [(row["fault"], judge(row, runs, uids_seen)) for row in truth if row["expected"] != "unseen"]
    assert judged == [(row["fault"], row["expected"]) for row in truth if row["expected"] != "unseen"]


def test_every_reason_that_a_tar_can_show_occurs_and_few_samples_are_broken(truth):
    expected = Counter(row["expected"] for row in truth)
    assert set(expected) == {reason.value for reason in Reason} - {"bad_row", "bad_embedding"} | {"ok", "unseen"}
    assert {row["fault"] for row in truth} == set(FAULTS) | {"cut", None}
    assert sum(expected[reason.value] for reason in Reason) == 15 < 0.05 * len(truth)


def test_keys_and_uids_are_those_of_the_ledger(truth, runs):
    for row in truth:
        if row["expected"] == "unseen":
            continue
        key, run = runs[row["shard"], row["row"]]
        assert row["key"] == (f"{key}.2" if row["fault"] == "returning_key" else key)
        try:
            uid = json.loads(by_extension(run)["json"]).get("uid", "")
        except json.JSONDecodeError:
            uid = ""
        valid = re.fullmatch("[0-9a-f]{32}", uid)
        assert row["uid"] == (uid if valid else derive_uid(row["shard"], row["key"]).hex())
        assert bool(valid) == (row["fault"] is None or FAULTS[row["fault"]].brings_uid)


def test_our_own_reader_agrees(truth, folder):
    pool = Pool(format="webdataset", path=f"{folder}/pool/*.tar", max_member_bytes=GENERATED_MEMBER_LIMIT)
    expected = {(row["shard"], row["row"]): row for row in truth if row["expected"] != "unseen"}
    decided_later = {"undecodable_image", "image_too_large", "duplicate_uid"}
    num_seen, damages = 0, []
    for shard in list_shards(pool):
        *samples, end = read_shard(pool, shard)
        damages.append(end.damage)
        for sample in samples:
            row = expected[shard.name, sample.row]
            assert sample.key == row["key"]
            assert (sample.uid or derive_uid(shard.name, sample.key)).hex() == row["uid"]
            assert sample.uid_invalid == (row["fault"] == "invalid_uid")
            assert (sample.reason or "ok") == row["expected"] or row["expected"] in decided_later
            num_seen += 1
    assert num_seen == len(expected)
    assert damages == [None, None, Damage.TRUNCATED]


def test_only_a_repeated_uid_repeats(truth):
    first_with_uid = {}
    for row in truth:
        first = first_with_uid.setdefault(row["uid"], row)
        assert (first is not row) == (row["fault"] == "repeated_uid")
        assert first["expected"] in ("ok", "unseen") or first["fault"] == row["fault"]


def test_the_cut_goes_through_one_sample_and_hides_the_rest(truth, runs, folder):
    unseen = [row for row in truth if row["expected"] == "unseen"]
    assert [(row["shard"], row["row"]) for row in unseen] == [("00002.tar", row) for row in range(96, 120)]
    assert [row["fault"] for row in unseen] == ["cut"] + [None] * 23
    assert max(row for shard, row in runs if shard == "00002.tar") == 96
    members = runs["00002.tar", 96][1]
    assert [data is None for _, data in members] == [False, False, True]
    size = (folder / "pool/00002.tar").stat().st_size
    assert members[-1][0].offset_data < size < members[-1][0].offset_data + members[-1][0].size


def test_duplicates_are_of_earlier_sound_samples(truth, runs):
    by_uid = {row["uid"]: row for row in reversed(truth)}
    edits = Counter(row["edit"] for row in truth if row["duplicate_of"])
    assert edits["exact"] == 24  # 6 % of the 402 samples without a fault
    assert [edits[edit] for edit in EDITS] == [7, 7, 6, 6, 6]  # 8 %
    for row in truth:
        assert (row["duplicate_of"] is None) == (row["edit"] is None)
        if row["duplicate_of"] is None:
            continue
        original = by_uid[row["duplicate_of"]]
        assert (original["shard"], original["row"]) < (row["shard"], row["row"])
        assert original["duplicate_of"] is None
        assert original["fault"] in (None, "cut")
        assert original["concept"] == row["concept"]
        if row["expected"] == "ok":
            ours, theirs = (
                [data for member, data in runs[it["shard"], it["row"]][1] if not member.name.endswith(("txt", "json"))]
                for it in (row, original)
            )
            assert (ours == theirs) == (row["edit"] == "exact")


def test_captions_name_their_concept(truth, runs):
    plural = {"cross": "crosses"}
    for row in truth:
        assert row["aligned"] == (row["concept"] == row["caption_concept"])
        if row["expected"] == "ok":
            caption = by_extension(runs[row["shard"], row["row"]][1])["txt"].decode().lower()
            colour, shape = row["caption_concept"].split()
            assert re.search(rf"\b{colour} ({shape}|{plural.get(shape, shape + 's')})\b", caption)
    assert sum(not row["aligned"] for row in truth) == round(0.25 * 402)


def test_images_come_in_all_formats_and_in_the_sizes_their_metadata_says(truth, runs):
    extensions, sides = Counter(), []
    for row in truth:
        if row["expected"] != "ok":
            continue
        parts = by_extension(runs[row["shard"], row["row"]][1])
        metadata = json.loads(parts["json"])
        (ext,) = parts.keys() - {"txt", "json"}
        image = Image.open(io.BytesIO(parts[ext]))
        assert image.size == (metadata["width"], metadata["height"])
        assert hashlib.sha256(parts[ext]).hexdigest() == metadata["sha256"]
        assert image.format.lower() == {"jpg": "jpeg"}.get(ext, ext)
        assert metadata["caption"].encode() == parts["txt"]
        extensions[ext] += 1
        sides += image.size
    assert extensions.keys() == {"jpg", "png", "webp"}
    assert 32 <= min(sides) < 40
    assert 400 < max(sides) <= 512


def test_the_side_files_list_every_attempt(folder, truth):
    for shard, size in (("00000", 150), ("00001", 150), ("00002", 120)):
        attempts = pq.read_table(folder / f"pool/{shard}.parquet").to_pylist()
        stats = json.loads((folder / f"pool/{shard}_stats.json").read_text())
        failed = [row for row in attempts if row["status"] == "failed_to_download"]
        assert [row["key"] for row in attempts] == [f"{shard}{number:04d}" for number in range(len(attempts))]
        assert len(attempts) == stats["count"] == size + len(failed)
        assert stats["successes"] == size
        assert stats["failed_to_download"] == len(failed) == (3 if size == 150 else 2)
        assert sum(stats["status_dict"].values()) == stats["count"]
        assert all(row["error_message"] for row in failed)
        keys = {row["key"] for row in truth if row["shard"] == f"{shard}.tar"}
        assert keys.isdisjoint(row["key"] for row in failed)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    small = {"samples": 12, "samples_per_shard": 5, "broken": False}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        generate_pool(tmp_path / name, PoolSettings(seed=seed, **small))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a") != files_of(tmp_path / "c")
    generate_pool(tmp_path / "side by side", PoolSettings(seed=1, **small), processes=2)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "side by side")


def test_only_labelled_samples_bring_their_concept(folder, tmp_path):
    generate_pool(tmp_path / "test", PoolSettings(samples=5, broken=False, labelled=True))
    concepts = pq.read_table(tmp_path / "test" / "truth.parquet")["concept"].to_pylist()
    assert [metadata["concept"] for metadata in metadata_in(tmp_path / "test/pool/00000.tar")] == concepts
    assert all("concept" not in metadata for metadata in metadata_in(folder / "pool/00000.tar"))


def test_tar_headers_know_nothing_of_this_machine(runs):
    headers = {
        (member.mtime, member.uid, member.gid, member.uname, member.gname, member.mode)
        for _, run in runs.values()
        for member, _ in run
    }
    assert headers == {(0, 0, 0, "", "", 0o644)}


@pytest.mark.parametrize("samples", [1, 5, 6])
def test_without_broken_samples_everything_is_ok(tmp_path, samples):
    truth = generate_pool(tmp_path, PoolSettings(samples=samples, samples_per_shard=5, broken=False))
    assert truth.schema == TRUTH_SCHEMA
    assert truth["expected"].to_pylist() == ["ok"] * samples
    assert truth["fault"].null_count == samples
    assert [path.name for path in sorted((tmp_path / "pool").glob("*.tar"))] == ["00000.tar", "00001.tar"][
        : 1 + (samples > 5)
    ]


def test_concepts_are_skewed_as_asked():
    skewed = plan_pool(PoolSettings(samples=20_000, exact_fraction=0, near_fraction=0))
    counts = [count for _, count in Counter(skewed.concept_N.tolist()).most_common()]
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.15)
    even = plan_pool(PoolSettings(samples=20_000, zipf_exponent=0, exact_fraction=0, near_fraction=0))
    assert min(Counter(even.concept_N.tolist()).values()) > 0.7 * 20_000 / len(CONCEPTS)


def test_captions_can_be_false_however_skewed_the_concepts_are():
    plan = plan_pool(PoolSettings(samples=1_000, zipf_exponent=10, misaligned_fraction=1, broken=False))
    assert (plan.told_N != plan.concept_N).all()


def test_returning_keys_never_join_another_run():
    plan = plan_pool(PoolSettings(samples=30_000, samples_per_shard=100))
    partners = {index: plan.partners[index] for index, name in plan.faults.items() if name == "returning_key"}
    assert len(partners) == len(set(partners.values())) == 30
    assert all(index // 100 == partner // 100 and partner <= index - 2 for index, partner in partners.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"samples_per_shard": 9_001}, "samples_per_shard must be in 1..9000, got 9001"),
        ({"zipf_exponent": -1.0}, r"zipf_exponent must be in \[0, 10\], got -1.0"),
        ({"zipf_exponent": float("nan")}, r"zipf_exponent must be in \[0, 10\], got nan"),
        ({"misaligned_fraction": 1.5}, r"misaligned_fraction must be in \[0, 1\], got 1.5"),
        ({"exact_fraction": 0.5, "near_fraction": 0.5}, "exact_fraction [+] near_fraction must be below 1, got 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        PoolSettings(**settings)


def test_a_pool_too_small_for_every_fault_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"18 samples of a pool must be broken.*got room for 14"):
        generate_pool(tmp_path / "new", PoolSettings(samples=20))
    assert not (tmp_path / "new").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(InputError, match=f"must be new or empty, got {re.escape(str(taken))}"):
            generate_pool(taken, PoolSettings(samples=1, broken=False))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
