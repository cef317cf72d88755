"""How good a model is: zero-shot classification, retrieval, a linear probe, and how sure one can be of the numbers."""
