"""Writing and reading the keys of a pool by hand, without Ray."""

import pickle
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import InputError
from pipeline.export.keys import write_keys
from pipeline.export.slices import Slice
from pipeline.kept import SHARDS_AT_HAND, load_kept
from pipeline.storage import Store


def write(folder, shards):
    """Exports keys: `{shard: {key: kept}}`, each shard as (name, path below the root, URL)."""
    group = []
    for i, (place, verdicts) in enumerate(shards.items()):
        samples = pa.table({"shard": [place[0]] * len(verdicts), "key": list(verdicts)})
        pq.write_table(samples, folder / f"samples-{i}.parquet")
        pq.write_table(pa.table({"kept": list(verdicts.values())}), folder / f"verdicts-{i}.parquet")
        if num_kept := sum(map(bool, verdicts.values())):
            group.append(Slice(i, f"samples-{i}.parquet", f"verdicts-{i}.parquet", 0, num_kept))
    write_keys(Store(str(folder)), tuple(group), list(shards), [folder / "keys.parquet"])
    return load_kept(str(folder / "keys.parquet"))


@pytest.fixture
def kept_of(tmp_path):
    return partial(write, tmp_path)


def plain(name, root="s3://bucket/pool"):
    return (name, name, f"{root}/{name}")


def test_a_loader_keeps_what_was_kept(kept_of, tmp_path):
    kept = kept_of(
        {
            plain("00000.tar"): {"a": True, "b": False, "c": None, "d": True},
            plain("00001.tar"): {"a": False},
            plain("00002.tar"): {"sub/a": True},
        }
    )
    samples = [
        {"__url__": f"/data/{shard}", "__key__": key}
        for shard, keys in [("00000.tar", "abcd"), ("00001.tar", "a"), ("00002.tar", ["a", "sub/a", "./sub/a"])]
        for key in keys
    ]
    chosen = [sample for sample in samples if kept(sample["__url__"], sample["__key__"])]
    assert [(sample["__url__"][-9:], sample["__key__"]) for sample in chosen] == [
        ("00000.tar", "a"),
        ("00000.tar", "d"),
        ("00002.tar", "sub/a"),
        ("00002.tar", "./sub/a"),
    ]
    assert len(kept) == 3
    assert pq.read_table(tmp_path / "keys.parquet").to_pydict() == {
        "shard": ["00000.tar", "00000.tar", "00002.tar"],
        "key": ["a", "d", "sub/a"],
    }


@pytest.mark.parametrize(
    "place",
    [
        "x/00000.tar",
        "s3://bucket/pool/x/00000.tar",
        "/mnt/copy/x/00000.tar",
        "pipe:aws s3 cp s3://elsewhere/x/00000.tar -",
        "pipe:cat '/mnt/x/00000.tar'",
    ],
)
def test_a_shard_is_found_by_its_name_or_where_it_lies(kept_of, place):
    kept = kept_of({plain("x/00000.tar"): {"a": True}, plain("00000.tar"): {"b": True}})
    assert kept.of_shard(place) == {"a"}
    assert kept.of_shard("/mnt/copy/00000.tar") == {"b"}


def test_an_unknown_shard_is_an_error(kept_of):
    kept = kept_of({plain("00000.tar"): {"a": True}})
    with pytest.raises(InputError, match=r"must be one of the 1 of the pool .* got /data/00001.tar"):
        kept("/data/00001.tar", "a")
    with pytest.raises(InputError, match=r"got /data/100000.tar"):
        kept("/data/100000.tar", "a")


def test_two_sources_with_shards_of_one_name(kept_of):
    kept = kept_of({("a/0.tar", "0.tar", "/x/0.tar"): {"k": True}, ("b/0.tar", "0.tar", "/y/0.tar"): {"k": False}})
    assert kept("/x/0.tar", "k")
    assert not kept("/y/0.tar", "k")
    assert kept("a/0.tar", "k")
    with pytest.raises(InputError, match=r"got /z/0.tar, which may be a/0.tar, b/0.tar"):
        kept("/z/0.tar", "k")


def test_only_some_shards_stay_in_memory_and_none_is_pickled(kept_of):
    shards = {plain(f"{i}.tar"): {str(i): True} for i in range(SHARDS_AT_HAND + 3)}
    kept = kept_of(shards)
    for _ in range(2):
        assert all(kept(name, name.removesuffix(".tar")) for name, _, _ in shards)
    assert len(kept._at_hand) == SHARDS_AT_HAND
    copy = pickle.loads(pickle.dumps(kept))  # noqa: S301
    assert not copy._at_hand
    assert copy("2.tar", "2")


def test_nothing_kept(kept_of):
    kept = kept_of({plain("0.tar"): {"a": False}, plain("1.tar"): {}})
    assert len(kept) == 0
    assert not kept("0.tar", "a")
    assert not kept("1.tar", "a")


def test_not_an_export(tmp_path):
    (tmp_path / "text").write_text("no Parquet")
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "other.parquet")
    for name in ("text", "other.parquet"):
        with pytest.raises(InputError, match=f"{name} must be a `keys` export, got"):
            load_kept(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        load_kept(str(tmp_path / "missing"))


@given(verdicts=st.lists(st.dictionaries(st.text(max_size=5), st.booleans(), max_size=9), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_every_key_of_every_shard(tmp_path_factory, verdicts):
    kept = write(tmp_path_factory.mktemp("keys"), {plain(f"{i}.tar"): keys for i, keys in enumerate(verdicts)})
    for i, keys in enumerate(verdicts):
        assert kept.of_shard(f"{i}.tar") == {key for key, is_kept in keys.items() if is_kept}
