"""Training two towers on Ray: from shards, or from the kept samples of a curated workspace, to a finished model.

One worker trains in a task of Ray's, several are a worker group of Ray Train.

`settings` is the config; `examples` says which samples; `decoding`, `dealing` and `feeder` bring them to the workers in
an order that no worker can change; `loop` is what each worker does, over `towers`; `checkpoints`, `metrics_log` and
`finished` are what it leaves behind; `trainer` starts it all.
"""
