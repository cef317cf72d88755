"""A small multimodal masked autoencoder: how badly a pair is reconstructed says how little it resembles trusted ones.

Geng et al. 2022 (arXiv 2205.14204): patches of the image and tokens of the text pass one transformer encoder, most of
both hidden from it; a light decoder rebuilds the hidden ones. As a filter in Fang et al. 2023 (arXiv 2309.17425,
Table 1). Deviations: byte pairs of a vocabulary learnt from the trusted captions in place of BERT's word pieces, learnt
positions, and sizes for small images.

Patches are rebuilt as they are after normalising each by its own mean and deviation, as in masked autoencoders (He et
al. 2021, arXiv 2111.06377, section 4.1): so the loss depends less on how much contrast an image has.

Legend: B rows of a batch, C colours (RGB), H height, W width, P patches, V of them visible, L places of the text,
U places that can hold a visible token, S = P + L, D dimensions, T tokens of the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from operators.filters.tokens import PAD

_INITIAL_STD = 0.02
_HEAD_DIMS = 32
_EPSILON = 1e-6


@dataclass(frozen=True)
class Shape:
    """The sizes of the network.

    Attributes:
        image_size: side of the images in pixels.
        patch: side of a patch; divides `image_size`.
        tokens: places of the text.
        vocabulary: tokens, padding and unknown included.
        width: of the encoder, a multiple of 32, one attention head for each 32; the decoder has half of it.
        depth: layers of the encoder; the decoder has half of them, at least one.
        mask_ratio: share of patches and of tokens that are hidden; at least one of each.
    """

    image_size: int
    patch: int
    tokens: int
    vocabulary: int
    width: int
    depth: int
    mask_ratio: float

    @property
    def patches(self) -> int:
        """P."""
        return (self.image_size // self.patch) ** 2

    def hidden(self, count_B: Tensor) -> Tensor:
        """How many of so many are hidden: at least one where there is one."""
        hidden_B = torch.round(count_B * self.mask_ratio).clamp(min=1)
        return torch.minimum(hidden_B, count_B).long()


class MaskedAutoencoder(nn.Module):
    """Encoder and decoder."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        patch_values, decoder = 3 * shape.patch**2, max(shape.width // 2, _HEAD_DIMS)
        self.from_patch = nn.Linear(patch_values, shape.width)
        self.from_token = nn.Embedding(shape.vocabulary, shape.width)
        self.place_SD = _parameter(shape.patches + shape.tokens, shape.width)
        self.encoder = _transformer(shape.width, shape.depth)
        self.to_decoder = nn.Linear(shape.width, decoder)
        self.hidden_2D = _parameter(2, decoder)  # what stands for a hidden patch, and for a hidden token
        self.decoder_place_SD = _parameter(shape.patches + shape.tokens, decoder)
        self.decoder = _transformer(decoder, max(1, shape.depth // 2))
        self.to_patch = nn.Linear(decoder, patch_values)
        self.to_token = nn.Linear(decoder, shape.vocabulary)

    def forward(self, pixels_BHWC: Tensor, token_BL: Tensor, noise_BS: Tensor) -> tuple[Tensor, Tensor]:
        """How badly each pair is rebuilt.

        Args:
            pixels_BHWC: uint8.
            token_BL: int64, `PAD` after the last token of a row; each row has at least one token.
            noise_BS: any numbers: of each row the patches, and the tokens, with the lowest stay visible.

        Returns:
            image_B, the mean squared error of hidden patches, and text_B, the mean cross-entropy of hidden tokens.
        """
        patches = self.shape.patches
        patch_BPD = to_patches(pixels_BHWC, self.shape.patch)
        patch_hidden_BP = self._hide(noise_BS[:, :patches], torch.ones_like(patch_BPD[..., 0], dtype=torch.bool))
        real_BL = token_BL != PAD
        token_hidden_BL = self._hide(noise_BS[:, patches:], real_BL)
        x_BSD = torch.cat([self.from_patch(patch_BPD), self.from_token(token_BL)], dim=1) + self.place_SD
        real_BS = torch.cat([torch.ones_like(patch_hidden_BP), real_BL], dim=1)
        hidden_BS = torch.cat([patch_hidden_BP, token_hidden_BL], dim=1)
        decoded_BSD = self._decode(self._encode(x_BSD, real_BS & ~hidden_BS), hidden_BS, real_BS)
        image_B = self._image_loss(decoded_BSD[:, :patches], patch_BPD, patch_hidden_BP)
        return image_B, self._text_loss(decoded_BSD[:, patches:], token_BL, token_hidden_BL)

    def _hide(self, noise_BX: Tensor, real_BX: Tensor) -> Tensor:
        """Bool_BX: of the real ones, those with the highest noise."""
        count_B = real_BX.sum(dim=1)
        rank_BX = noise_BX.masked_fill(~real_BX, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
        return real_BX & (rank_BX >= (count_B - self.shape.hidden(count_B))[:, None])

    def _encode(self, x_BSD: Tensor, visible_BS: Tensor) -> Tensor:
        """What the encoder makes of the visible ones, at their places; zero elsewhere. It sees no others."""
        most = int(visible_BS.sum(dim=1).max())
        order_BV = (~visible_BS).byte().argsort(dim=1, stable=True)[:, :most]
        there_BV = visible_BS.gather(1, order_BV)
        index_BVD = order_BV[..., None].expand(-1, -1, x_BSD.shape[2])
        encoded_BVD = self.encoder(x_BSD.gather(1, index_BVD), src_key_padding_mask=~there_BV)
        encoded_BVD = encoded_BVD.masked_fill(~there_BV[..., None], 0.0)
        return torch.zeros_like(x_BSD).scatter(1, index_BVD, encoded_BVD.to(x_BSD.dtype))

    def _decode(self, encoded_BSD: Tensor, hidden_BS: Tensor, real_BS: Tensor) -> Tensor:
        patches, (patch_D, token_D) = self.shape.patches, self.hidden_2D
        stand_in_SD = torch.cat([patch_D.expand(patches, -1), token_D.expand(self.shape.tokens, -1)])
        x_BSD = torch.where(hidden_BS[..., None], stand_in_SD, self.to_decoder(encoded_BSD)) + self.decoder_place_SD
        decoded_BSD: Tensor = self.decoder(x_BSD, src_key_padding_mask=~real_BS)
        return decoded_BSD

    def _image_loss(self, decoded_BPD: Tensor, patch_BPD: Tensor, hidden_BP: Tensor) -> Tensor:
        target_BPD = patch_BPD - patch_BPD.mean(dim=2, keepdim=True)
        target_BPD = target_BPD / torch.sqrt(target_BPD.square().mean(dim=2, keepdim=True) + _EPSILON)
        error_BP = (self.to_patch(decoded_BPD) - target_BPD).square().mean(dim=2)
        return _mean_where(error_BP, hidden_BP)

    def _text_loss(self, decoded_BLD: Tensor, token_BL: Tensor, hidden_BL: Tensor) -> Tensor:
        # Only hidden places are scored: the scores of all, over the whole vocabulary, would be most of the memory.
        error_M = F.cross_entropy(self.to_token(decoded_BLD[hidden_BL]).float(), token_BL[hidden_BL], reduction="none")
        error_BL = torch.zeros_like(token_BL, dtype=error_M.dtype).masked_scatter(hidden_BL, error_M)
        return _mean_where(error_BL, hidden_BL)


def to_patches(pixels_BHWC: Tensor, side: int) -> Tensor:
    """Float32 (B, P, 3 side^2) in [-1, 1]: the patches of uint8 images, row by row."""
    count, height, width, colours = pixels_BHWC.shape
    grid = pixels_BHWC.view(count, height // side, side, width // side, side, colours)
    patch_BPD = grid.permute(0, 1, 3, 2, 4, 5).reshape(count, -1, side * side * colours)
    return patch_BPD.float() / 127.5 - 1.0


def _mean_where(value_BX: Tensor, where_BX: Tensor) -> Tensor:
    return (value_BX * where_BX).sum(dim=1) / where_BX.sum(dim=1).clamp(min=1)


def _parameter(places: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(places, width) * _INITIAL_STD)


def _transformer(width: int, depth: int) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        width, width // _HEAD_DIMS, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False)
