"""Image-text retrieval both ways, exactly, tile by tile: how many candidates come before the right one.

Both sides are stored rows, so each float64 dot product is exact (`operators.embeddings`) and the ranks are the same on
any machine. Among equals the candidate of the lower number comes first. An image may have several captions; it has
found the text when the best of them comes first, as clip_benchmark and DataComp count.

Legend: N images, B images of a block, M captions, C captions of a block, D dimensions.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ranks = NDArray[np.int64]

_BLOCK_CAPTIONS = 4096


def own_scores(images_ND: NDArray[np.float16], captions_MD: NDArray[np.float16], image_M: Ranks) -> Floats:
    """The exact dot product of each caption with its own image: own_M; -inf where that was not embedded."""
    own_M = np.empty(len(captions_MD))
    for start in range(0, len(own_M), _BLOCK_CAPTIONS):
        block = slice(start, start + _BLOCK_CAPTIONS)
        pairs = images_ND[image_M[block]].astype(np.float64), captions_MD[block].astype(np.float64)
        own_M[block] = np.einsum("cd,cd->c", *pairs)
    own_M[np.isin(image_M, np.flatnonzero(~images_ND.any(axis=1)))] = -np.inf
    return own_M


def best_captions(own_M: Floats, image_M: Ranks, num_images: int) -> Ranks:
    """The caption of each image that scores best with it, the first among equals: best_N. Each has one at least."""
    order_M = np.lexsort((np.arange(len(own_M)), -own_M, image_M))
    best_N = np.full(num_images, -1, np.int64)
    first_M = np.r_[True, np.diff(image_M[order_M]) > 0]
    best_N[image_M[order_M[first_M]]] = order_M[first_M]
    assert (best_N >= 0).all(), "an image without a caption"
    return best_N


def count_ahead(
    images_ND: NDArray[np.float16], captions_MD: NDArray[np.float16], image_M: Ranks, own_M: Floats, block: slice
) -> tuple[Ranks, Ranks]:
    """The part of the ranks that one block of images has a hand in; the whole is the sum over blocks.

    Args:
        images_ND: stored rows; an image that the model could not embed is all zeros: never found, finding nothing.
        captions_MD: stored rows.
        image_M: the image of each caption.
        own_M: `own_scores`.
        block: of images.

    Returns:
        caption_rank_B: how many captions come before the best of each image's own; M where not embedded.
        image_ahead_M: how many of these images come before each caption's own: all, where that was not embedded.
    """
    best_B = best_captions(own_M, image_M, len(images_ND))[block]
    x_BD = images_ND[block].astype(np.float64)
    blank_B = ~x_BD.any(axis=1)
    image_B = np.arange(len(images_ND))[block]
    caption_rank_B = np.zeros(len(x_BD), np.int64)
    image_ahead_M = np.zeros(len(captions_MD), np.int64)
    for start in range(0, len(captions_MD), _BLOCK_CAPTIONS):
        captions = slice(start, start + _BLOCK_CAPTIONS)
        caption_C = np.arange(len(captions_MD))[captions]
        score_BC = x_BD @ captions_MD[captions].astype(np.float64).T
        score_BC[blank_B] = -np.inf
        best_B1 = own_M[best_B][:, None]
        caption_rank_B += ((score_BC > best_B1) | ((score_BC == best_B1) & (caption_C < best_B[:, None]))).sum(axis=1)
        own_C = own_M[captions]
        first_BC = (image_B[:, None] < image_M[captions]) | (own_C == -np.inf)
        image_ahead_M[captions] = ((score_BC > own_C) | ((score_BC == own_C) & first_BC)).sum(axis=0)
    caption_rank_B[blank_B] = len(captions_MD)
    return caption_rank_B, image_ahead_M
