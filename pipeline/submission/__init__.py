"""Sending a job to a cluster through Ray Jobs: what travels, under which name, and following it to its end."""
