"""Classes: lists of their names, what sets say of their samples, and the numbers that come of both.

Evaluations and trainings on class-labelled sets read them by the same rules.
"""
