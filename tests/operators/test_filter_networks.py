"""Filters that are networks: their training, a classifier of images and a masked autoencoder, on toy sets."""

from itertools import islice

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from operators.encoders.torch_encoder import choose_runtime
from operators.errors import InputError, ModelError
from operators.filters.fitting import _batches, fit_network
from operators.filters.m3ae import MaskedAutoencoder, Shape, to_patches
from operators.filters.recipe import Recipe
from operators.filters.reconstruction import (
    ReconstructionScorer,
    build_autoencoder,
    mask_noise,
    reconstruction_loss,
)
from operators.filters.resnet import (
    augment,
    build_classifier,
    check_image_size,
    classification_loss,
    classifier_scorer,
)
from operators.filters.tokens import PAD, UNKNOWN, learn_vocabulary

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (220, 210, 30)}
NAMES = list(COLOURS)
LENGTH = 6


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images of one colour each, 16 pixels wide, and which colour it is."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(NAMES), count)
    clean = np.array(list(COLOURS.values()))[which][:, None, None]
    return (clean + rng.integers(-25, 25, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8), which


def words(which: np.ndarray) -> list[str]:
    return [f"a {NAMES[colour % len(NAMES)]} square" for colour in which]


class TestFitting:
    def test_the_rate_warms_up_and_falls_to_nothing(self):
        recipe = Recipe(samples_seen=400, batch_size=10, learning_rate=1.0, weight_decay=0.0)
        assert recipe.steps == 40
        assert [recipe.rate(step) for step in (0, 1, 2)] == pytest.approx([0.5, 1.0, 1.0])
        assert recipe.rate(21) == pytest.approx(0.5)
        assert recipe.rate(39) == pytest.approx(0.5 * (1 + np.cos(np.pi * 37 / 38)))

    def test_every_row_comes_once_before_any_comes_again(self):
        batches = np.concatenate(list(islice(_batches(5, 3, np.random.default_rng(0)), 5)))
        assert [sorted(batches[start : start + 5]) for start in (0, 5, 10)] == [list(range(5))] * 3

    def test_a_least_squares_problem_is_solved_and_repeats(self):
        def fit() -> tuple[list[float], torch.Tensor]:
            x = torch.linspace(-1, 1, 32)[:, None]
            layer = nn.Linear(1, 1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            recipe = Recipe(20_000, 16, 0.05, 0.0)
            losses = list(
                fit_network(
                    "line", layer, lambda rows: (layer(x[rows]) - 3 * x[rows] - 1).square().mean(), 32, recipe, rng()
                )
            )
            return losses, torch.stack([layer.weight.detach().flatten(), layer.bias.detach()])

        def rng() -> np.random.Generator:
            return np.random.default_rng(3)

        losses, found = fit()
        assert found.flatten().tolist() == pytest.approx([3.0, 1.0], abs=1e-2)
        assert len(losses) == 1250
        assert losses[-1] < 1e-3 < losses[0]
        assert torch.equal(fit()[1], found)

    def test_a_loss_that_is_no_number_stops(self):
        layer = nn.Linear(1, 1)
        with pytest.raises(
            InputError, match=r"mine: the loss of update 1 of 2 must be finite, got nan: lower learning_rate"
        ):
            list(
                fit_network(
                    "mine",
                    layer,
                    lambda rows: layer(torch.ones(1, 1)).sum() * torch.nan,
                    4,
                    Recipe(8, 4, 1e-3, 0),
                    np.random.default_rng(),
                )
            )

    def test_weights_that_the_last_update_spoils_are_noticed(self):
        layer = nn.Linear(1, 1)

        def loss(rows: np.ndarray) -> torch.Tensor:
            return (layer.weight.sum() * 1e-30).sqrt() * 0  # finite, of a gradient that is not

        nn.init.zeros_(layer.weight)
        with pytest.raises(InputError, match=r"mine: weight after the 1 updates must be finite, got a value that is n"):
            list(fit_network("mine", layer, loss, 4, Recipe(4, 4, 1e-3, 0), np.random.default_rng()))


class TestClassifier:
    def test_colours_are_told_apart_and_scores_stand_alone(self):
        pixels, which = squares(200, 0)
        trusted = which < 2
        network = build_classifier("test_resnet", None, 0)
        rng = np.random.default_rng(0)
        recipe = Recipe(1600, 32, 3e-3, 0.01)
        loss = classification_loss(network, pixels[trusted], pixels[~trusted], rng)
        losses = list(fit_network("colours", network, loss, len(pixels), recipe, rng))
        assert np.mean(losses[-5:]) < 0.2 < losses[0]
        fresh, which = squares(64, 1)
        scorer = classifier_scorer(network, choose_runtime("float32", 32, "cpu", 1))
        logits = scorer.encode_images(fresh)[:, 0]
        assert roc_auc_score(which < 2, logits) > 0.95
        assert np.array_equal(scorer.encode_images(fresh[40:43])[:, 0], logits[40:43])

    def test_weights_come_from_the_seed_or_a_file(self):
        first, again, other = (build_classifier("test_resnet", None, seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])
        loaded = build_classifier("test_resnet", {**other, "fc.weight": torch.zeros(10, 384)}, 0).state_dict()
        assert torch.equal(loaded["conv1.0.weight"], other["conv1.0.weight"])
        assert torch.equal(loaded["fc.weight"], first["fc.weight"])  # the classifier is drawn anew

    def test_what_it_cannot_be(self):
        with pytest.raises(ModelError, match="model must be one of timm's, got 'resnet_of_mine'"):
            build_classifier("resnet_of_mine", None, 0)
        with pytest.raises(ModelError, match="weights must be those of test_resnet"):
            build_classifier("test_resnet", {"stem.weight": torch.zeros(3)}, 0)

    def test_the_size_of_images_is_tried(self):
        check_image_size(build_classifier("test_resnet", None, 0), "test_resnet", 16)
        rule = r"model must be one that takes images of 17 x 17 pixels \(image_size\), got 'test_vit': "
        with pytest.raises(ModelError, match=rule):
            check_image_size(build_classifier("test_vit", None, 0), "test_vit", 17)

    def test_augmentation_moves_and_mirrors_only(self):
        pixels = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3).repeat(64, axis=0)
        found = augment(pixels, np.random.default_rng(0))
        assert found.shape == pixels.shape
        padded = np.pad(pixels[0], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        allowed = {
            view.tobytes()
            for top in range(5)
            for left in range(5)
            for cut in [padded[top : top + 16, left : left + 16]]
            for view in (np.ascontiguousarray(cut), np.ascontiguousarray(cut[:, ::-1]))
        }
        seen = {np.ascontiguousarray(image).tobytes() for image in found}
        assert seen <= allowed
        assert len(seen) > 10


class TestVocabulary:
    def test_the_commonest_tokens_are_told_apart(self):
        vocabulary = learn_vocabulary(["a cat", "a dog", "a cat a"], 2)
        assert len(vocabulary) == 4
        a, cat = 2, 3
        assert vocabulary.encode(["a cat", "dog a", "", "a a a a"], 3).tolist() == [
            [a, cat, PAD],
            [UNKNOWN, a, PAD],
            [PAD, PAD, PAD],
            [a, a, a],
        ]


@pytest.fixture(scope="module")
def scorer() -> ReconstructionScorer:
    """A network that has seen a few thousand squares with their names."""
    pixels, which = squares(256, 0)
    vocabulary = learn_vocabulary(words(which), 100)
    shape = Shape(16, 4, LENGTH, len(vocabulary), 64, 2, 0.75)
    network = build_autoencoder(shape, 0)
    rng = np.random.default_rng(0)
    loss = reconstruction_loss(network, pixels, vocabulary.encode(words(which), LENGTH), 0.5, rng)
    losses = list(fit_network("m3ae", network, loss, len(pixels), Recipe(8000, 64, 3e-3, 0.05), rng))
    assert np.mean(losses[-5:]) < losses[0] / 2
    return ReconstructionScorer(network, vocabulary, 0.5, 4, 0, choose_runtime("float32", 32, "cpu", 1))


class TestAutoencoder:
    SHAPE = Shape(image_size=16, patch=4, tokens=LENGTH, vocabulary=9, width=64, depth=2, mask_ratio=0.75)

    def test_matched_pairs_score_better_than_mismatched_ones(self, scorer):
        pixels, which = squares(60, 1)
        uids = np.arange(60, dtype=np.uint64)
        matched = scorer.score(pixels, words(which), uids, uids)
        mismatched = scorer.score(pixels, words(which + 1), uids, uids)
        assert (matched > mismatched).mean() > 0.95
        assert roc_auc_score(np.arange(120) < 60, np.concatenate([matched, mismatched])) > 0.95

    def test_a_score_stands_alone_and_belongs_to_the_uid(self, scorer):
        pixels, which = squares(40, 2)
        uids = np.arange(40, dtype=np.uint64)
        together = scorer.score(pixels, words(which), uids, uids)
        few = slice(33, 36)
        assert np.array_equal(scorer.score(pixels[few], words(which)[few], uids[few], uids[few]), together[few])
        assert not np.array_equal(scorer.score(pixels, words(which), uids + np.uint64(1), uids), together)

    def test_captions_without_a_token_have_no_score(self, scorer):
        pixels, _ = squares(3, 3)
        uids = np.arange(3, dtype=np.uint64)
        assert np.isnan(scorer.score(pixels, ["", "a red square", " "], uids, uids)).tolist() == [True, False, True]
        assert np.isnan(scorer.score(pixels, ["", "", ""], uids, uids)).all()
        assert scorer.score(pixels[:0], [], uids[:0], uids[:0]).shape == (0,)

    def test_what_is_hidden_is_not_seen(self):
        """Whatever stands at hidden places, the encoder's view of the visible ones is the same."""
        network = build_autoencoder(self.SHAPE, 0).eval()
        pixels = torch.from_numpy(squares(2, 0)[0])
        tokens = torch.tensor([[2, 3, 4, 5, PAD, PAD], [6, 7, 8, 2, 3, 4]])
        noise = torch.rand(2, 22, generator=torch.Generator().manual_seed(0))
        hidden = network._hide(noise[:, :16], torch.ones(2, 16, dtype=torch.bool))
        assert hidden.sum(dim=1).tolist() == [12, 12]
        token_hidden = network._hide(noise[:, 16:], tokens != PAD)
        assert token_hidden.sum(dim=1).tolist() == [3, 4]
        assert not token_hidden[0, 4:].any()

        changed = tokens.clone()
        changed[token_hidden] = 5
        seen = []

        def encode(x: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
            result = MaskedAutoencoder._encode(network, x, visible)
            seen.append(result)
            return result

        network._encode = encode
        with torch.inference_mode():
            network(pixels, tokens, noise)
            network(pixels, changed, noise)
        assert torch.equal(seen[0], seen[1])

    def test_losses_are_those_of_hidden_places(self):
        """With heads of zeros, each hidden patch costs its variance after normalising, 1, and each token ln T."""
        network = build_autoencoder(self.SHAPE, 0).eval()
        for layer in (network.to_patch, network.to_token):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        tokens = torch.tensor([[2, 3, 4, PAD, PAD, PAD]])
        image, text = network(torch.from_numpy(squares(1, 0)[0]), tokens, torch.rand(1, 22))
        assert image.item() == pytest.approx(1.0, rel=1e-3)
        assert text.item() == pytest.approx(np.log(9), rel=1e-5)

    def test_patches_by_hand(self):
        pixels = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3)
        patches = (to_patches(pixels, 2) + 1) * 127.5
        assert patches.shape == (1, 4, 12)
        assert patches[0, 1].round().int().tolist() == [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]

    def test_masks_are_even(self):
        numbers = np.arange(4000, dtype=np.uint64)
        noise = mask_noise(numbers, numbers, "0.0", 4)
        assert np.bincount(noise.argmin(axis=1)) == pytest.approx(np.full(4, 1000), abs=100)
        assert not np.array_equal(noise, mask_noise(numbers, numbers, "0.1", 4))
