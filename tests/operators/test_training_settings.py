"""Schedules, groups of parameters, averages and augmentation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from operators.training.augmentation import Augment, appearance_keys, augment, draw
from operators.training.averaging import average_states, renew_statistics
from operators.training.parameters import MAX_LOG_SCALE, clamp_scale, decay_groups
from operators.training.schedules import learning_rate


def test_warmup_rises_to_the_peak_and_a_cosine_falls_from_it():
    rates = [learning_rate(step, peak=2.0, num_steps=14, warmup_steps=4, final=0.2) for step in range(14)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[9] == pytest.approx(1.1)  # half-way between peak and final
    assert rates[13] == pytest.approx(0.2 + 1.8 * (1 + math.cos(0.9 * math.pi)) / 2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_constant_stays_and_cooldown_falls_at_the_end():
    constant = [learning_rate(s, peak=1.0, num_steps=8, warmup_steps=2, shape="constant") for s in range(8)]
    assert constant == [0.5, *[1.0] * 7]
    cooled = [learning_rate(s, peak=1.0, num_steps=8, shape="cooldown", cooldown_steps=4) for s in range(8)]
    assert cooled == [1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_norms_biases_vectors_and_the_scale_do_not_decay():
    model = nn.Module()
    model.ln_1, model.fc, model.position = nn.LayerNorm(3), nn.Linear(3, 2), nn.Parameter(torch.zeros(4, 3))
    model.class_embedding, model.logit_scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.tensor(1.0))
    model.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decayed, spared = decay_groups(model.named_parameters(), 0.2)
    assert decayed["weight_decay"] == 0.2
    assert {id(p) for p in decayed["params"]} == {id(model.fc.weight), id(model.position)}
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 5


def test_the_scale_stays_between_one_and_a_hundred():
    for value, expected in ((9.0, MAX_LOG_SCALE), (-1.0, 0.0), (2.0, 2.0)):
        scale = nn.Parameter(torch.tensor(value))
        clamp_scale(scale)
        assert scale.item() == pytest.approx(expected)


def test_an_average_lies_on_the_line_between_two_models():
    before = {"w": torch.tensor([0.0, 4.0]), "steps": torch.tensor(1)}
    after = {"w": torch.tensor([8.0, 8.0]), "steps": torch.tensor(5)}
    average = average_states(before, after, 0.25)
    assert average["w"].tolist() == [6.0, 7.0]
    assert average["steps"].item() == 5
    with pytest.raises(ValueError, match="same names, got steps in one only"):
        average_states({"w": before["w"]}, after, 0.5)


def test_statistics_are_renewed_over_batches_and_locked_ones_stay():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval())
    batches = [torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[4.0, 1.0], [8.0, 3.0]])]
    renew_statistics(model, batches)
    assert model[0].running_mean.tolist() == [3.5, 2.5]  # of the batches' means 1 and 6, 3 and 2
    assert model[0].running_var.tolist() == [5.0, 5.0]  # 2 and 8, 8 and 2
    assert model[0].momentum == 0.1
    assert model[1].running_mean.tolist() == [0.0, 0.0]


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 6, 3), dtype=np.uint8)
UIDS = np.random.default_rng(1).integers(0, 2**63, (2, 40), dtype=np.uint64)


def keys(epoch: int, repeat: int = 0):
    return appearance_keys(*UIDS, np.full(40, epoch), np.full(40, repeat), seed=3)


def test_draws_belong_to_sample_epoch_and_repeat():
    draws = [draw(keys(*when), "flip") for when in ((0, 0), (1, 0), (0, 1))]
    assert all(((u >= 0) & (u < 1)).all() for u in draws)
    assert len(np.unique(np.concatenate(draws))) == 120
    assert np.array_equal(draws[0][5:9], draw(keys(0)[5:9], "flip"))
    assert not np.array_equal(draws[0], draw(keys(0), "area"))


@pytest.mark.parametrize(
    "settings",
    [
        Augment(padding=2, flip=True),
        Augment(scale=(0.5, 0.9), aspect=1.3),
        Augment(brightness=0.4, contrast=0.3),
    ],
)
def test_augmentation_changes_images_alone_and_as_their_keys_say(settings):
    before = IMAGES.copy()
    changed = augment(IMAGES, keys(0), settings)
    assert changed.shape == IMAGES.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(IMAGES, before)
    assert np.array_equal(augment(IMAGES[7:9], keys(0)[7:9], settings), changed[7:9])
    assert not np.array_equal(augment(IMAGES, keys(1), settings), changed)
    assert np.array_equal(augment(IMAGES, keys(0), Augment()), IMAGES)


def test_flips_are_mirrors_of_half_of_the_images():
    changed = augment(IMAGES, keys(0), Augment(flip=True))
    mirrored = (changed == IMAGES[:, :, ::-1]).all(axis=(1, 2, 3))
    assert 10 < mirrored.sum() < 30
    assert np.array_equal(changed[~mirrored], IMAGES[~mirrored])


def test_shifts_move_by_whole_pixels_up_to_the_padding():
    image = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    image[0, 4, 4] = 255
    moved = augment(image.repeat(200, axis=0), np.arange(200, dtype=np.uint64), Augment(padding=2))
    places = {tuple(place) for place in np.argwhere(moved[..., 0] == 255)[:, 1:].tolist()}
    assert places == {(row, column) for row in range(2, 7) for column in range(2, 7)}
