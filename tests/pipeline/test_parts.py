"""Tests the packed list of parts."""

import json

import pytest

from pipeline import parts
from pipeline.parts import Part, Parts


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(parts, "_AT_ONCE", 3)


def part(number: int) -> Part:
    counts = {"in": number, "kept": number // 2, "dropped:ü": 1}
    return Part(f"{number}.tar", f"id{number}", f"p/{number}", number, 7, "ab" * 32, counts, "m", {"damage": "cut"})


@pytest.mark.parametrize("count", [0, 2, 3, 7])
def test_they_come_out_as_they_went_in(count):
    plain = [part(number) for number in range(count)]
    packed = Parts(plain)
    assert len(packed) == count
    assert list(packed) == plain
    assert [packed[i] for i in range(-count, count)] == plain + plain
    assert packed[1:5] == plain[1:5]
    assert packed.column("id") == [one.id for one in plain]
    assert packed.sums["in"] == sum(range(count))
    assert packed == Parts(iter(plain))
    assert packed != Parts([*plain, part(9)])
    with pytest.raises(IndexError):
        packed[count]


def test_parts_are_taken_out_of_json_as_it_is_read():
    packed = Parts()
    text = json.dumps(
        {
            "info": {"id": "no part"},
            "parts": [{"shard": "a", "id": "b", "path": "c", "rows": 1, "size": 2, "sha256": "d"}],
        }
    )
    assert json.loads(text, object_hook=packed.take) == {"info": {"id": "no part"}, "parts": [None]}
    assert list(packed) == [Part("a", "b", "c", 1, 2, "d")]
