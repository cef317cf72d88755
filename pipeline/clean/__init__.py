"""Finding what a workspace holds that nobody will read again.

`leftovers` knows what attempts leave behind when they die, `unused` what the latest run does not refer to, and `sweep`
puts both together and deletes. Whatever none of them knows is left alone: a user's own files, exports, trained filters
and models, the state that an unfinished run goes on from.
"""
