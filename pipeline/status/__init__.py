"""What the job that has a workspace is doing, or what became of the last one: `status.json`, and who reads it.

`write` is the side of the job, `read` that of `winnow status`, on whatever machine.
"""
