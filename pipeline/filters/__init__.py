"""Filters that are trained inside a curation; their science is in `operators.filters`.

`files` is what a trained filter is kept as, `drawing` says which rows it learns from, `pairs` brings their images to
where it is trained (`training`), and `scoring` lets it score a pool. The steps are `pipeline.steps.learned` and those
that build on it.
"""
