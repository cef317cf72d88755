"""Reading a whole workspace again: is it what was written, does it fit together, do its sums add up?

Start at `workspace`, which goes through all there is. `parts` looks at one part, `folders` at one artifact after the
other, `ledger` does the sums of the recorded run, `records` looks at models, checkpoints and outcomes.
"""
