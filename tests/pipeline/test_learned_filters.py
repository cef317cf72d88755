"""Filters that are trained inside a run, without Ray: their settings, files and draws, and their networks."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from safetensors.numpy import save

from operators.errors import ConfigError, InputError, ModelError
from operators.filters.binary import LinearClassifier
from pipeline.artifact import parquet_bytes
from pipeline.columns import embedding_field, fixed_binary
from pipeline.config.loader import load_config
from pipeline.curate import check
from pipeline.curation import Curation
from pipeline.filters.drawing import Drawn
from pipeline.filters.files import FORMAT, filter_bytes, parse_filter, read_filter
from pipeline.filters.memory import check_room
from pipeline.filters.pairs import PairReader, Pairs, join_pairs
from pipeline.filters.training import Effort, Wanted, train
from pipeline.steps.binary_embeddings import score_rows
from pipeline.steps.binary_images import count_shared, load_classifier
from pipeline.steps.diversity import DiversitySettings, count_clusters, describe
from pipeline.steps.registry import BinaryEmbeddings, BinaryImages, Filter, MaskedAutoencoder
from pipeline.storage import Store

SOURCE = {"format": "images", "path": "trusted"}


def pairs(count: int, seed: int, captions=None, side: int = 16) -> Pairs:
    rng = np.random.default_rng(seed)
    numbers = rng.permutation(count).astype(np.uint64)
    pixels = rng.integers(0, 256, (count, side, side, 3)).astype(np.uint8)
    return Pairs(numbers, numbers, pixels, captions or [f"caption {i}" for i in range(count)])


class TestSettings:
    @pytest.mark.parametrize("changes", [{}, {"trusted": [SOURCE], "trained": "a.safetensors"}])
    def test_a_filter_is_trained_here_or_was_before(self, changes):
        with pytest.raises(ValidationError, match="needs exactly one of trusted and trained"):
            BinaryImages(step="binary_images", **changes)

    def test_one_source_needs_no_list(self):
        alone = MaskedAutoencoder(step="masked_autoencoder", trusted=SOURCE)
        assert alone == MaskedAutoencoder(step="masked_autoencoder", trusted=[SOURCE])

    def test_what_a_trained_filter_has_settled_must_be_left_out(self):
        with pytest.raises(ValidationError, match=r"must be left out with trained, which has it settled, got 0\.5"):
            BinaryImages(step="binary_images", trained="a.safetensors", learning_rate=0.5)
        with pytest.raises(ValidationError, match="must be left out with trained, which has it settled, got 7"):
            BinaryEmbeddings(step="binary_embeddings", model="raw", trained="a.safetensors", negatives=7)
        BinaryEmbeddings(step="binary_embeddings", model="raw", modality="both", trained="a.safetensors")
        MaskedAutoencoder(step="masked_autoencoder", trained="a.safetensors", draws=2)

    def test_errors_name_the_line(self, tmp_path):
        path = tmp_path / "a.yaml"
        path.write_text(
            "pool: {format: images, path: pool}\nworkspace: work\nsteps:\n"
            "  - step: masked_autoencoder\n    trusted: {format: images, path: trusted}\n    patch: 5\n"
        )
        with pytest.raises(ConfigError, match=r"patch must divide image_size \(32\), got 5 \(.*a\.yaml:6\)"):
            load_config(str(path), Curation)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"image_size": 8, "patch": 8}, r"must be smaller than image_size \(8\), got 8"),
            ({"image_size": 8, "patch": 4, "mask_ratio": 0.9}, "must leave one of the 4 patches to be seen, got 0.9"),
        ],
    )
    def test_a_mask_must_leave_something_to_be_seen(self, changes, message):
        with pytest.raises(ValidationError, match=message):
            MaskedAutoencoder(step="masked_autoencoder", trusted=SOURCE, **changes)

    def test_the_size_of_images_is_tried_before_any_work(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"any")
        source = {"format": "images", "path": str(tmp_path)}
        step = BinaryImages(step="binary_images", trusted=source, model="test_vit", image_size=17)
        with pytest.raises(ModelError, match=r"^binary_images: model must be one that takes images of 17 x 17 pixels"):
            step.check()

    def test_a_trusted_set_of_another_modality_is_refused(self):
        source = {"format": "datacomp", "path": "trusted"}
        with pytest.raises(InputError, match=r"binary_images\.trusted must be of a format with images, got datacomp"):
            BinaryImages(step="binary_images", trusted=source).check()

    def test_a_trusted_set_that_is_not_there_is_refused_before_any_work(self, tmp_path):
        step = BinaryEmbeddings(
            step="binary_embeddings", model="raw", trusted={"format": "images", "path": f"{tmp_path}/none"}
        )
        with pytest.raises(InputError, match=r"pool path must exist, got .*none"):
            step.check()

    def test_the_network_is_looked_up_before_any_work(self, tmp_path):
        (tmp_path / "a.jpg").write_bytes(b"any")
        source = {"format": "images", "path": str(tmp_path)}
        with pytest.raises(ModelError, match=r"name must be a model that the library knows, got 'resnet43' \(did you"):
            BinaryImages(step="binary_images", trusted=source, model="resnet43").check()

    def test_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        step = BinaryImages(step="binary_images", trusted=SOURCE, weights="a.safetensors").resolved()
        assert step.trusted is not None
        assert (step.trusted[0].path, step.weights) == (f"{tmp_path}/trusted", f"{tmp_path}/a.safetensors")
        assert BinaryImages(step="binary_images", trusted=SOURCE).resolved().weights == "random"
        assert BinaryImages(step="binary_images", trained="a").resolved().trained == f"{tmp_path}/a"

    def test_images_are_needed(self, tmp_path):
        settings = {
            "pool": {"format": "datacomp", "path": "pool"},
            "workspace": "work",
            "steps": [{"step": "binary_images", "trusted": SOURCE}],
        }
        with pytest.raises(ValidationError, match="for a pool of embeddings, which has no images"):
            Curation.model_validate(settings)


class TestFiles:
    def test_a_filter_comes_back(self, tmp_path):
        tensors = {"weights": np.arange(3.0), "count": np.array(7)}
        data = filter_bytes("binary_images", tensors, {"image_size": 8}, {"loss": 0.5})
        assert data == filter_bytes("binary_images", dict(reversed(tensors.items())), {"image_size": 8}, {"loss": 0.5})
        (tmp_path / "a.safetensors").write_bytes(data)
        found = read_filter(str(tmp_path / "a.safetensors"), "binary_images")
        assert {name: array.tolist() for name, array in found.tensors.items()} == {"weights": [0.0, 1, 2], "count": 7}
        assert (found.settings, found.training) == ({"image_size": 8}, {"loss": 0.5})
        other = filter_bytes("binary_images", tensors, {"image_size": 9}, {"loss": 0.5})
        assert parse_filter(other, "a", "binary_images").digest != found.digest
        assert parse_filter(data, "a").kind == "binary_images"

    def test_a_flipped_bit_is_noticed_wherever_it_is(self):
        data = filter_bytes("binary_images", {"b": np.arange(3.0)}, {"image_size": 8}, {"loss": 0.5})
        for place in range(len(data)):
            broken = bytearray(data)
            broken[place] ^= 1
            with contextlib.suppress(InputError):
                found = parse_filter(bytes(broken), "a", "binary_images")
                # Only what is no part of it: the padding of the header, or the name of another entry.
                assert (found.settings, found.training, dict(found.tensors)["b"].tolist()) == (
                    {"image_size": 8},
                    {"loss": 0.5},
                    [0.0, 1.0, 2.0],
                )

    @pytest.mark.parametrize(
        "facts",
        [[], {}, {"format": FORMAT}, {"format": FORMAT, "kind": "binary_images", "settings": 1, "training": {}}],
    )
    def test_odd_facts(self, facts):
        data = save({"weights": np.zeros(1)}, {"winnow_filter": json.dumps(facts)})
        with pytest.raises(InputError, match="a must be a trained filter of kind binary_images, "):
            parse_filter(data, "a", "binary_images")

    def test_one_that_does_not_say_how_to_use_it(self, tmp_path):
        path = tmp_path / "a.safetensors"
        path.write_bytes(filter_bytes("binary_images", {"weights": np.zeros(1)}, {"model": "resnet34"}, {}))
        rule = r"kind binary_images, whose settings tell image_size, got model"
        with pytest.raises(InputError, match=rule):
            BinaryImages(step="binary_images", trained=str(path)).check()

    def test_weights_of_another_network_are_refused(self):
        settings = {"model": "test_resnet", "image_size": 16}
        other = parse_filter(filter_bytes("binary_images", {"a": np.zeros(1)}, settings, {}), "a", "binary_images")
        with pytest.raises(ModelError, match=r"weights must be those of the network test_resnet of a, got "):
            load_classifier(other)

    @pytest.mark.parametrize("data", [b"", b"\x02\x00\x00\x00\x00\x00\x00\x00{}", b"\xff" * 64])
    def test_what_is_none(self, data):
        with pytest.raises(InputError, match="a must be a trained filter of kind binary_images, got"):
            parse_filter(data, "a", "binary_images")

    def test_one_of_another_kind(self, tmp_path):
        path = tmp_path / "a.safetensors"
        path.write_bytes(filter_bytes("binary_embeddings", {"weights": np.zeros(1)}, {}, {}))
        with pytest.raises(InputError, match=r"must be a trained filter of kind masked_auto.* got binary_emb"):
            MaskedAutoencoder(step="masked_autoencoder", trained=str(path)).check()
        with pytest.raises(InputError, match=r"none\.safetensors must be a readable file"):
            MaskedAutoencoder(step="masked_autoencoder", trained=str(tmp_path / "none.safetensors")).check()


class TestThresholds:
    """A stored threshold judges the scores of the filter that it was stored with, and no others."""

    def config(self, tmp_path, score: dict, scored_by: str) -> Curation:
        (tmp_path / "a.jpg").write_bytes(b"any")
        record = {
            "score": "s",
            "scored_by": scored_by,
            "best": "highest",
            "value": 0.1,
            "keep_fraction": 0.5,
            "subset": 2,
            "rows": 2,
            "kept_share": 0.5,
            "confidence": 0.9,
            "seed": 0,
            "pool_interval": [0, 1],
            "source_interval": [0, 1],
        }
        (tmp_path / "threshold.json").write_text(json.dumps(record))
        steps = [
            {"step": "binary_images", "name": "s", **score},
            {"step": "filter", "score": "s", "threshold": {"file": f"{tmp_path}/threshold.json"}},
        ]
        pool = {"format": "images", "path": str(tmp_path)}
        return Curation.model_validate({"pool": pool, "workspace": str(tmp_path / "work"), "steps": steps})

    def test_of_a_trained_filter_it_is_known_before_any_work(self, tmp_path):
        file = tmp_path / "filter.safetensors"
        settings = {"model": "test_resnet", "image_size": 16}
        file.write_bytes(filter_bytes("binary_images", {"fc.weight": np.zeros(1)}, settings, {}))
        score = {"trained": str(file)}
        own = BinaryImages(step="binary_images", **score).scored_by({})
        check(self.config(tmp_path, score, own))
        with pytest.raises(InputError, match=r"must be a threshold of the values that filter reads .* of a DFN"):
            check(self.config(tmp_path, score, "a DFN"))

    def test_of_one_that_is_to_be_trained_it_is_judged_later(self, tmp_path):
        score = {"trusted": {"format": "images", "path": str(tmp_path)}, "model": "test_resnet"}
        assert BinaryImages(step="binary_images", **score).scored_by({}) is None
        check(self.config(tmp_path, score, "a DFN"))

    def test_the_number_of_masks_is_another_score(self, tmp_path):
        file = tmp_path / "filter.safetensors"
        file.write_bytes(filter_bytes("masked_autoencoder", {"a": np.zeros(1)}, {}, {}))
        few, many = (MaskedAutoencoder(step="masked_autoencoder", trained=str(file), draws=n) for n in (1, 2))
        assert few.scored_by({}) != many.scored_by({})


class TestRows:
    def test_scores_where_all_embeddings_are(self):
        def column(*rows):
            x_ND = np.array([row or (0, 0) for row in rows], dtype=np.float16)
            return fixed_binary(x_ND, np.array([row is not None for row in rows]))

        schema = pa.schema([embedding_field(name, 2) for name in ("image", "text")])
        table = pa.table([column((1, 0), (0, 1), None), column((0, 1), None, (1, 0))], schema=schema)
        classifier = LinearClassifier(np.array([1.0, 2.0, 4.0, 8.0]), 0.5)
        assert score_rows("both", classifier, table)["score"].to_pylist() == [9.5, None, None]
        halves = replace(classifier, weights_D=classifier.weights_D[:2])
        assert score_rows("image", halves, table)["score"].to_pylist() == [1.5, 2.5, None]
        assert score_rows("text", halves, table)["score"].to_pylist() == [2.5, None, 1.5]

    def test_without_a_limit_all_usable_rows_are_drawn(self):
        table = pa.table(
            {"uid": pa.array([bytes([i]) * 16 for i in range(3)], pa.binary(16)), "ok": [True, False, True]}
        )
        drawn = Drawn(0, "any", lambda table: table["ok"].to_numpy(zero_copy_only=False), 2)
        assert drawn.of(table).tolist() == [True, False, True]

    def test_pairs_are_joined_in_the_order_of_their_uids(self):
        whole = pairs(7, 0)
        parts = [
            Pairs(whole.high_N[rows], whole.low_N[rows], whole.pixels_NHWC[rows], whole.captions[rows])
            for rows in (slice(0, 3), slice(3, 7))
        ]
        first, second = join_pairs(parts), join_pairs(parts[::-1])
        assert first.high_N.tolist() == list(range(7))
        assert first.captions == second.captions
        assert np.array_equal(first.pixels_NHWC, second.pixels_NHWC)
        assert first.captions[3] == whole.captions[whole.high_N.tolist().index(3)]

    def test_more_than_a_node_can_hold_is_refused_for_all_sets_together(self, monkeypatch):
        reader = PairReader(None, None, 256)
        sets = [Wanted(None, reader, Drawn(0, "any", len, count)) for count in (30_000, 20_000)]
        monkeypatch.setattr("pipeline.filters.memory.most_memory", lambda: 10 * 2**30)
        rule = r"mine must learn from at most 5\.0 GiB in all \(half the memory of the largest node\), got 9\.2 GiB: "
        with pytest.raises(InputError, match=rule + r"50,000 images of 256 x 256 pixels; lower image_size"):
            train(None, "mine", None, sets, Effort(1, 1, 1))
        monkeypatch.setattr("pipeline.filters.memory.most_memory", lambda: 0)
        check_room("mine", 31 * 2**30, "rows", "")
        with pytest.raises(InputError, match=r"at most 32\.0 GiB in all \(whatever the machine\), got 33\.0 GiB: rows"):
            check_room("mine", 33 * 2**30, "rows", "")

    def test_images_in_both_sets_are_counted(self):
        trusted, pool = pairs(5, 0), pairs(9, 1)
        pool.pixels_NHWC[[2, 6]] = trusted.pixels_NHWC[3]
        assert count_shared(trusted, pool) == 2


class TestNetworks:
    """What the training task does, and then the actors."""

    def test_a_classifier_learns_repeats_and_scores(self):
        step = BinaryImages(
            step="binary_images", trusted=SOURCE, model="test_resnet", image_size=16, samples_seen=96, batch_size=16
        )
        sets = [pairs(20, 0), pairs(30, 1)]
        *losses, data = step.learn(0, sets)
        assert len(losses) == step.recipe.steps == 6
        assert list(step.learn(0, sets))[-1] == data
        assert list(step.learn(1, sets))[-1] != data
        trained = parse_filter(data, "a", "binary_images")
        assert trained.training["negatives"] == 30
        scorer = step.loader(trained)
        assert (scorer.size, scorer.needs_caption) == (16, False)
        few = pairs(5, 2)
        assert np.array_equal(scorer.score(few), step.loader(trained).score(few))

    def test_an_autoencoder_learns_and_scores(self):
        step = MaskedAutoencoder(
            step="masked_autoencoder",
            trusted=SOURCE,
            image_size=16,
            samples_seen=64,
            batch_size=16,
            width=64,
            depth=1,
            tokens=4,
        )
        *losses, data = step.learn(0, [pairs(20, 0)])
        assert len(losses) == 4
        assert list(step.learn(0, [pairs(20, 0)]))[-1] == data
        trained = parse_filter(data, "a", "masked_autoencoder")
        found = step.loader(trained).score(pairs(3, 1, ["caption 2", "", "never seen"]))
        assert np.isnan(found).tolist() == [False, True, False]

    @pytest.mark.parametrize("captions", [["the same"] * 6, [""] * 6, ["the same", *[""] * 5]])
    def test_captions_that_are_all_equal_are_refused(self, captions):
        step = MaskedAutoencoder(step="masked_autoencoder", trusted=SOURCE)
        with pytest.raises(InputError, match=r"masked_autoencoder\.trusted must hold captions that differ, got [01] "):
            next(step.learn(0, [pairs(6, 0, captions, side=32)]))


class TestDiversity:
    def test_rows_are_counted_by_cluster(self, tmp_path):
        store = Store(str(tmp_path))
        store.replace("c", parquet_bytes(pa.table({"cluster": pa.array([0, 2, 2, None, None], pa.int32())})))
        store.replace("v", parquet_bytes(pa.table({"kept": [True, True, False, True, None]})))
        assert count_clusters(store, 3, [("c", "v")]).tolist() == [[1, 0, 2], [1, 0, 1]]
        assert count_clusters(store, 3, [("c", "v")] * 2).tolist() == [[2, 0, 4], [2, 0, 2]]

    def test_it_changes_no_other_filters_address(self):
        run = type("Run", (), {"seed": 0})()
        plain = Filter(step="filter", column="width", keep=3)
        measured = Filter(step="filter", column="width", keep=3, diversity={"model": "raw", "clusters": 4})
        assert "diversity" not in plain.identity(run)
        assert measured.identity(run)["diversity"]["clusters"] == 4
        assert measured.embeddings() == (("raw", "image"),)
        assert plain.embeddings() == ()

    def test_its_settings_are_those_of_k_means(self):
        assert DiversitySettings(model="raw", iterations=3).kmeans.iterations == 3
        with pytest.raises(ValidationError, match="init"):
            DiversitySettings(model="raw", clusters=20_000, init="kmeans++")

    def test_in_words(self):
        numbers = {"samples": 8, "entropy": 0.7, "effective": 2.0, "largest_share": 0.5}
        found = {"model": "raw", "clusters": 4, "before": numbers, "after": numbers | {"effective": 1.0}}
        found["at_random"] = numbers | {"effective": 1.5}
        assert describe(found) == (
            "Of 4 clusters of raw embeddings, what came in was as diverse as 2.0 of equal size, and what was kept as "
            "1.0, where as many at random would be as 1.5; the largest cluster held 50.0% and then 50.0%."
        )
