"""`winnow nightly`: a curation that grows with its pool, a snapshot each night.

Start at `night`, which goes through one. `settings` is the config, `shards` says what is new, changed or gone since the
snapshot before; `state` gives a run what that snapshot holds; `diff` lists the samples that came and went, `profile`
counts what `operators.drift` measures, and `snapshot` puts a night's record together. How snapshots lie in a workspace
is `pipeline.snapshots`' matter.
"""
