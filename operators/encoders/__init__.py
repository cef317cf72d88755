"""Models that turn images and captions into vectors.

`settings` says which model and imports none; `base` holds the two halves of every model; `open_clip`, `timm` and
`pixels` build them. State dicts are passed in: finding and reading weights is the plumbing's work (`pipeline.models`).
"""
