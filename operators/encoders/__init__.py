"""Models that turn images and captions into vectors.

`settings` says which model, `base` what the two halves of every model are; neither imports a model library. `pixels`,
`timm` and `open_clip` build them, the last two over `torch_encoder`. State dicts are passed in: finding and reading
weights is the plumbing's work (`pipeline.models`).
"""
