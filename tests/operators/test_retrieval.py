"""Ranks of a retrieval: by hand, against a sort, in any blocks."""

import numpy as np
import pytest

from operators.embeddings import to_unit_float16
from operators.evaluation import retrieval
from operators.evaluation.retrieval import best_captions, count_ahead, own_scores


def ranks(images_ND, captions_MD, image_M, block=1000):
    own_M = own_scores(images_ND, captions_MD, image_M)
    blocks = [slice(start, start + block) for start in range(0, len(images_ND), block)]
    parts = [count_ahead(images_ND, captions_MD, image_M, own_M, part) for part in blocks]
    return np.concatenate([part[0] for part in parts]), sum(part[1] for part in parts)


def naive(images_ND, captions_MD, image_M):
    score = images_ND.astype(np.float64) @ captions_MD.astype(np.float64).T
    by_image = [sorted(range(len(image_M)), key=lambda m: (-row[m], m)) for row in score]
    by_caption = [sorted(range(len(images_ND)), key=lambda n: (-column[n], n)) for column in score.T]
    texts = [min(order.index(m) for m in np.flatnonzero(image_M == n)) for n, order in enumerate(by_image)]
    return texts, [order.index(n) for order, n in zip(by_caption, image_M, strict=True)]


def test_by_hand():
    images_ND = np.array([[1, 0], [0, 1]], np.float16)
    captions_MD = np.array([[0, 1], [1, 0], [1, 0]], np.float16)  # the first is nearer to the other image
    texts_N, images_M = ranks(images_ND, captions_MD, np.array([0, 0, 1]))
    np.testing.assert_array_equal(texts_N, [0, 2])  # for image 1, captions 1 and 2 are equal: 1 comes first
    np.testing.assert_array_equal(images_M, [1, 0, 1])


@pytest.mark.parametrize("seed", range(4))
def test_any_blocks_give_what_a_sort_gives(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    image_M = rng.permutation(np.r_[np.arange(40), rng.integers(0, 40, 50)])
    images_ND = to_unit_float16(rng.integers(-1, 2, (40, 4)) + 0.01)[0]  # coarse, so that many are equal
    captions_MD = to_unit_float16(rng.integers(-1, 2, (90, 4)) + 0.01)[0]
    texts, images = naive(images_ND, captions_MD, image_M)
    for block, tile in [(1000, 1000), (7, 11)]:
        monkeypatch.setattr(retrieval, "_BLOCK_CAPTIONS", tile)
        texts_N, images_M = ranks(images_ND, captions_MD, image_M, block)
        np.testing.assert_array_equal(texts_N, texts)
        np.testing.assert_array_equal(images_M, images)


def test_an_image_that_was_not_embedded_finds_nothing_and_is_not_found():
    images_ND = np.array([[0, 0], [-1, 0], [0, 1]], np.float16)
    captions_MD = np.array([[0, 1], [0, -1], [0, 1]], np.float16)
    for block in (1, 2, 3):
        texts_N, images_M = ranks(images_ND, captions_MD, np.arange(3), block)
        np.testing.assert_array_equal(texts_N, [3, 1, 1])
        np.testing.assert_array_equal(images_M, [3, 0, 0])


def test_the_best_caption_is_the_first_among_equals():
    np.testing.assert_array_equal(best_captions(np.array([1.0, 2.0, 2.0, 0.0]), np.array([1, 0, 0, 1]), 2), [1, 0])
