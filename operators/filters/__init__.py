"""Filters that are trained on trusted pairs, besides CLIP: pure numpy and torch.

`binary` separates embeddings, `resnet` images, and `m3ae` reconstructs pairs. `fitting` trains the two networks.
"""
