"""Streaming shards through decoding and encoding into published parts.

    shards -> read (CPU tasks) -> decode and resize (CPU tasks) -> encode (actors) -> pieces -> finalise a shard

Read `stream.flow` for the wiring; `chunks` is the CPU side, `encode` the model side, `finalise` the publishing side.
Pools of embeddings take a shorter way, in `stored`.
"""
