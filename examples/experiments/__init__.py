"""Claims of Data Filtering Networks (Fang et al. 2023, arXiv 2309.17425), tried on CIFAR-10 with human label errors.

`cifar` writes the data and reads the configs beside it, `filters` trains other filter networks, `measures` holds them
against the truth and draws, and each of `e1`, `e2`, ... is one experiment. What they found is in docs/experiments.md.
"""
