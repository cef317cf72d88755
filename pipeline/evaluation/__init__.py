"""Evaluating models: reading evaluation sets, embedding them once, and publishing what came of every sample."""
