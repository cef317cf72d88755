"""Losses and gradients of contrastive batches, against open_clip's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from operators import torchvision_ops  # noqa: F401

# isort: split
from open_clip.loss import ClipLoss, SigLipLoss

from operators.training.gradients import Batch, backward_in_pieces, backward_whole
from operators.training.losses import Head, Pairs, clip_loss, siglip_loss

SCALE, BIAS = torch.tensor(7.0), torch.tensor(-3.0)


def unit(rows: int, seed: int) -> torch.Tensor:
    x_ND = torch.randn(rows, 6, generator=torch.Generator().manual_seed(seed))
    return F.normalize(x_ND, dim=-1).requires_grad_()


def pairs(rows: int = 8) -> Pairs:
    return Pairs(unit(rows, 1), unit(rows, 2))


def test_clip_loss_of_two_pairs_by_hand():
    eye = torch.eye(2)
    loss = clip_loss(Pairs(eye, eye), Pairs(eye, eye), Head(torch.tensor(math.log(3))))
    assert loss.item() == pytest.approx(math.log(4 / 3))  # logits ln 3 against 0: the right one has 3 of 4 parts


def test_siglip_loss_of_two_pairs_by_hand():
    eye = torch.eye(2)
    loss = siglip_loss(Pairs(eye, eye), Pairs(eye, eye), Head(torch.tensor(2.0), torch.tensor(-1.0)))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)) * 2)  # all four logits are 1 on the right side


def test_losses_equal_those_of_open_clip():
    own = pairs()
    assert torch.equal(clip_loss(own, own, Head(SCALE)), ClipLoss()(*own, SCALE))
    torch.testing.assert_close(siglip_loss(own, own, Head(SCALE, BIAS)), SigLipLoss()(*own, SCALE, BIAS))


@pytest.mark.parametrize(("loss", "head"), [(clip_loss, Head(SCALE)), (siglip_loss, Head(SCALE, BIAS))])
@pytest.mark.parametrize("workers", [2, 4])
def test_the_mean_over_workers_is_the_loss_of_the_whole_and_has_its_gradient(loss, head, workers):
    whole, shared = pairs(), pairs()
    loss(whole, whole, head, 0).backward()
    size = 8 // workers
    parts = [Pairs(*(side[r * size : (r + 1) * size] for side in shared)) for r in range(workers)]
    mean = sum(loss(part, shared, head, r * size) for r, part in enumerate(parts)) / workers
    mean.backward()
    torch.testing.assert_close(mean, loss(whole, whole, head, 0))
    for side, expected in zip(shared, whole, strict=True):
        torch.testing.assert_close(side.grad, expected.grad)


class Towers(nn.Module):
    """Two linear towers with dropout, so that a piece that is computed twice must drop the same."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(12, 6), nn.Embedding(50, 6)
        self.scale, self.bias = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(-1.0))

    def forward(self, pixels, tokens):
        image = F.dropout(self.image(pixels.flatten(1)), 0.3)
        text = self.text(tokens).mean(1)
        return Pairs(F.normalize(image, dim=-1), F.normalize(text, dim=-1)), Head(self.scale.exp(), self.bias)


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(loss):
    draws = torch.Generator().manual_seed(0)
    batch = Batch(torch.randn(8, 3, 2, 2, generator=draws), torch.randint(50, (8, 5), generator=draws))

    def of_rows(pixels, tokens):
        """The mask of a row depends on the row alone, so that pieces and whole drop the same."""
        outputs = []
        for row in range(len(pixels)):
            torch.manual_seed(int(pixels[row].sum().item() * 1e6) % 2**31)
            outputs.append(towers(pixels[row : row + 1], tokens[row : row + 1]))
        return Pairs(*(torch.cat(side) for side in zip(*(pair for pair, _ in outputs), strict=True))), outputs[0][1]

    gradients = []
    for pieces in (1, 2, 4):
        torch.manual_seed(3)
        towers = Towers()
        if pieces == 1:
            value = backward_whole(of_rows, batch, loss, lambda _: None)
        else:
            value = backward_in_pieces(of_rows, batch, loss, lambda _: None, pieces=pieces)
        gradients.append([value, *(parameter.grad for parameter in towers.parameters() if parameter.grad is not None)])
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0])


def test_each_piece_is_seeded_the_same_both_times():
    seeded: list[int] = []
    batch = Batch(torch.randn(4, 3, 2, 2), torch.zeros(4, 5, dtype=torch.long))
    backward_in_pieces(Towers(), batch, clip_loss, seeded.append, pieces=2)
    assert seeded == [0, 1, 0, 1]
