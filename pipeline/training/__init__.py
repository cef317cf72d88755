"""Training two towers on Ray Train: from shards, or from the kept samples of a curated workspace, to a finished model.

`settings` is the config; `examples` says which samples; `decoding`, `dealing` and `feeder` bring them to the workers in
an order that no worker can change; `loop` is what each worker does, over `towers`; `checkpoints`, `metrics_log` and
`finished` are what it leaves behind; `trainer` starts it all.
"""
