"""What a run would do and cost, before it is started: `winnow curate C --dry-run`.

    sample    a few shards, read by the real reader: how many samples there are, how large, how hard to decode
    encoding  what a model costs for each sample, here or on a GPU of another kind
    start     what a process costs that starts
    rates     what the operators do a second on this machine
    rehearsal the parts of a typical shard, written by the code that writes the real ones: their sizes and their times
    formulas  from all these to the cost of each kind of step
    plan      puts them together; `table` shows the result
    reuse     what an earlier run left, which costs nothing

Nothing here starts Ray, and nothing is written outside a temporary folder.
"""
