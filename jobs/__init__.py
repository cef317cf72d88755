"""The doors: one short module per command."""
