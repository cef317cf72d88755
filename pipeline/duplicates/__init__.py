"""Semantic deduplication spread over Ray; the rules are in `operators.duplicates`.

`layout` cuts the clusters into blocks and says which of them meet, `rows` brings the rows of a block together, and
`search` decides them: in the very task that receives them where no blocks meet, else in turns over files (`turns`).
"""
