"""The plumbing: config, storage, readers, steps, Ray wiring, ledger, report. No formulas."""
