"""The judge functions of the steps on tables written by hand, without Ray."""

import json

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from operators.errors import ConfigError, InputError
from operators.uids import UID_PAIR
from pipeline.columns import embedding_field, fixed_binary
from pipeline.findings import positions_of
from pipeline.shuffle import PARTITION
from pipeline.steps import deny, exact_dedup, python, rules, score, unique_uid
from pipeline.uniqueness import find_in_block

UIDS = [bytes([number]) * 16 for number in range(8)]


def uids(*numbers: int) -> pa.Array:
    return pa.array([UIDS[number] for number in numbers], pa.binary(16))


def summary(verdicts) -> list[tuple[bool, str | None]]:
    return list(zip(verdicts.kept_N.tolist(), verdicts.reasons.to_pylist(), strict=True))


class TestRules:
    def table(self, *rows):
        width, height, caption = zip(*rows, strict=True) if rows else ([], [], [])
        types = {"width": pa.int32(), "height": pa.int32(), "caption": pa.string()}
        return pa.table([list(width), list(height), list(caption)], schema=pa.schema(types))

    def test_the_first_rule_that_fails_is_the_reason(self):
        settings = rules.Rules(step="rules", min_side=10, max_aspect=2, min_words=2)
        table = self.table((10, 20, "two words"), (9, 90, "one"), (10, 21, "two words"), (20, 20, None))
        verdicts = rules.judge(settings, table)
        assert summary(verdicts) == [(True, None), (False, "min_side"), (False, "max_aspect"), (False, "min_words")]
        assert verdicts.details.to_pylist()[1] == {
            "side": 9,
            "aspect": 10.0,
            "words": 1,
            "chars": 3,
            "language": None,
            "language_score": None,
        }

    def test_no_rows(self):
        assert summary(rules.judge(rules.Rules(step="rules", min_side=1), self.table())) == []


class TestDeny:
    def table(self, *rows):
        uid, image_hash, metadata = zip(*rows, strict=True) if rows else ([], [], [])
        texts = [None if fields is None else json.dumps(fields) for fields in metadata]
        schema = pa.schema({"uid": pa.binary(16), "image_hash": pa.binary(16), "metadata": pa.string()})
        return pa.table([list(uid), list(image_hash), texts], schema=schema)

    def test_each_list_speaks_for_its_field_and_the_uid_first(self):
        lists = deny.Lists(
            frozenset({UIDS[1].hex()}), frozenset({"http://a"}), frozenset({UIDS[2].hex(), "ab" * 32, "00" * 16})
        )
        table = self.table(
            (UIDS[0], UIDS[5], {"url": "http://b"}),
            (UIDS[1], UIDS[2], {"url": "http://a"}),
            (UIDS[3], UIDS[2], {"url": "http://a"}),
            (UIDS[4], UIDS[2], None),
            (UIDS[5], None, {"sha256": "AB" * 32}),
            (UIDS[6], None, {"url": ["http://a"], "sha256": 7}),
        )
        verdicts = deny.judge(lists, table)
        assert summary(verdicts) == [
            (True, None),
            (False, "denied_uid"),
            (False, "denied_url"),
            (False, "denied_image"),
            (False, "denied_image"),
            (True, None),
        ]
        matches = [None, UIDS[1].hex(), "http://a", UIDS[2].hex(), "ab" * 32, None]
        assert [row["match"] for row in verdicts.details.to_pylist()] == matches

    def test_no_lists_and_no_rows(self):
        assert summary(deny.judge(deny.Lists(), self.table((UIDS[0], None, {"url": None})))) == [(True, None)]
        assert summary(deny.judge(deny.Lists(), self.table())) == []

    def test_lists_from_files(self, tmp_path):
        text, subset = tmp_path / "a.txt", tmp_path / "a.npy"
        text.write_text("\ufeff# withdrawn\n\n  " + "AB" * 16 + " \n" + "cd" * 16 + "\n", encoding="utf-8")
        np.save(subset, np.array([(0x1111111111111111, 2)], dtype=UID_PAIR))
        assert deny.read_uids(str(text)) == deny.read_hashes(str(text)) == {"ab" * 16, "cd" * 16}
        assert deny.read_uids(str(subset)) == {"1" * 16 + "0" * 15 + "2"}
        settings = deny.Deny(step="deny", uids=str(subset), urls=str(text))
        record = {"uids": ["1" * 16 + "0" * 15 + "2"], "urls": ["AB" * 16, "cd" * 16], "image_hashes": []}
        assert deny.read_lists(settings).record() == record

    def test_one_list_is_needed(self):
        with pytest.raises(ValidationError, match="at least one of uids, urls and image_hashes"):
            deny.Deny(step="deny")


class TestPython:
    def settings(self, name, **changes):
        return python.Python(step="python", function=f"tests.jobs.own_functions:{name}", **changes)

    @pytest.mark.parametrize("batch_rows", [1, 2, 100])
    def test_verdicts_and_scores_do_not_depend_on_the_batches(self, batch_rows):
        captions = pa.table({"caption": ["a", None, "a long enough caption"]})
        verdicts = python.judge(self.settings("keeps_long_captions_or_none", batch_rows=batch_rows), captions)
        assert summary(verdicts) == [(False, "python"), (True, None), (True, None)]
        scores = python.score(self.settings("caption_length", gives="score", batch_rows=batch_rows), captions)
        assert scores["score"].to_pylist() == [1.0, None, 21.0]

    def test_no_rows(self):
        none = pa.table({"caption": pa.array([], pa.string())})
        assert summary(python.judge(self.settings("raises"), none)) == []
        assert python.score(self.settings("raises", gives="score"), none)["score"].to_pylist() == []

    @pytest.mark.parametrize(
        ("name", "gives", "error", "message"),
        [
            ("raises", "verdict", InputError, r"must not raise, got ZeroDivisionError: .* \(own_functions.py:\d+\)"),
            ("gives_one_value", "verdict", ConfigError, r"one value for each of 2 rows, got shape \(1,\)"),
            ("gives_nothing", "score", ConfigError, r"one value for each of 2 rows, got shape \(\)"),
            ("gives_numbers", "verdict", ConfigError, "must return booleans to give a verdict, got int64"),
            ("keeps_long_captions_or_none", "score", ConfigError, "must return numbers to give a score, got bool"),
            (
                "number",
                "verdict",
                ConfigError,
                "function must be callable, got 'tests.jobs.own_functions:number', a int",
            ),
        ],
    )
    def test_what_a_function_may_not_do(self, name, gives, error, message):
        work = python.judge if gives == "verdict" else python.score
        with pytest.raises(error, match=message):
            work(self.settings(name, gives=gives), pa.table({"caption": ["a", "b"]}))


class TestScore:
    def column(self, *rows):
        x_ND = np.array([row or (0, 0) for row in rows], dtype=np.float16).reshape(-1, 2)
        return fixed_binary(x_ND, np.array([row is not None for row in rows], dtype=bool))

    def test_the_cosine_of_stored_rows_where_both_are_there(self):
        image, text = self.column((1, 0), (0.6, 0.8), None, (0, 1)), self.column((0, 1), (0.6, 0.8), (1, 0), None)
        table = pa.table({"image": image, "text": text}, pa.schema([embedding_field(n, 2) for n in ("image", "text")]))
        x = np.array([0.6, 0.8], np.float16).astype(np.float64)
        assert score.cosine(table)["score"].to_pylist() == [0.0, min(1.0, float(x @ x)), None, None]


class Repeats:
    """What `find_repeats` would have found, held in memory."""

    shards = ("a.tar", "b.tar")

    def __init__(self, rows):
        self.rows = rows

    def of(self, shard):
        return self.rows.filter(
            pa.array([self.shards[unit] == shard for unit in self.rows["unit"].to_pylist()], pa.bool_())
        )


def block(*rows) -> pa.Table:
    """Rows (key, unit, row, uid) as they come to `find_in_block`."""
    key, unit, row, uid = (np.array(column) for column in zip(*rows, strict=True))
    low = np.zeros(len(rows), np.uint64)
    columns = {"key_high": key.astype(np.uint64), "key_low": low, "unit": unit.astype(np.int32), "row": row}
    return pa.table({PARTITION: low.astype(np.int32), **columns, "high": uid.astype(np.uint64), "low": low})


class TestUniqueness:
    BLOCK = block((7, 1, 0, 3), (7, 0, 5, 9), (8, 0, 1, 1), (7, 0, 2, 4), (9, 1, 3, 2), (9, 1, 1, 2))

    def test_all_but_the_first_row_of_each_key(self):
        by_place = find_in_block(("unit", "row"), self.BLOCK).to_pylist()
        found = {(row["unit"], row["row"]): (row["first_unit"], row["first_row"]) for row in by_place}
        assert found == {(0, 5): (0, 2), (1, 0): (0, 2), (1, 3): (1, 1)}
        by_uid = find_in_block(("high", "low"), self.BLOCK.slice(0, 4)).to_pylist()
        assert {(row["unit"], row["row"]): row["first_high"] for row in by_uid} == {(0, 5): 3, (0, 2): 3}

    def test_rows_that_stand_come_first_of_their_key(self):
        block = self.BLOCK.append_column("new", pa.array([False, True, True, True, True, False]))
        for order in (("new", "unit", "row"), ("new", "high", "low")):
            found = find_in_block(order, block).to_pylist()
            firsts = {(row["unit"], row["row"]): (row["first_unit"], row["first_row"]) for row in found}
            assert firsts == {(0, 5): (1, 0), (0, 2): (1, 0), (1, 3): (1, 1)}

    def test_positions_are_those_in_the_table_that_entered(self):
        repeats = find_in_block(("unit", "row"), self.BLOCK.slice(0, 2))
        table = pa.table({"row": [0, 4, 9]})
        positions, rows = positions_of(table, repeats)
        assert positions.tolist() == [0]
        assert rows["first_row"].to_pylist() == [5]

    def test_unique_uid(self):
        repeats = Repeats(find_in_block(("unit", "row"), self.BLOCK))
        table = pa.table(
            {
                "uid": uids(3, 1, 2, 2),
                "shard": ["b.tar"] * 4,
                "row": [0, 1, 2, 3],
                "reason": [None, "missing_text", None, "missing_text"],
            }
        )
        verdicts = unique_uid.judge(repeats, table)
        rejected = [(False, "duplicate_uid"), (False, "missing_text"), (True, None), (False, "duplicate_uid")]
        assert summary(verdicts) == rejected
        assert verdicts.details.to_pylist()[0] == {"first_shard": "a.tar", "first_row": 2}
        alone = unique_uid.judge(None, table)
        assert alone.reasons.to_pylist() == [None, "missing_text", None, "missing_text"]
        assert summary(unique_uid.judge(repeats, table.slice(0, 0))) == []

    def test_exact_dedup(self):
        repeats = Repeats(find_in_block(("high", "low"), self.BLOCK))
        table = pa.table({"uid": uids(1, 4, 5), "shard": ["a.tar"] * 3, "row": [1, 2, 5], "image_hash": uids(0, 0, 0)})
        verdicts = exact_dedup.judge(repeats, table)
        duplicate = (False, "exact_duplicate")
        assert summary(verdicts) == [(True, None), duplicate, duplicate]
        first = "0" * 15 + "3" + "0" * 16
        assert [row["duplicate_of"] for row in verdicts.details.to_pylist()] == [None, first, first]
        assert summary(exact_dedup.judge(repeats, table.slice(0, 0))) == []
