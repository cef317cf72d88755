"""The static report of a run: one HTML file that opens without a network.

build -> scan     every shard once, on Ray: what the views count, and which samples they want to show
-> examples the shards that hold those samples: their captions, numbers and thumbnails
-> views    one for each section: what it counts, and how it is told
-> page     the blocks a section is made of, and the template
"""
