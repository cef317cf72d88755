"""The science: pure functions and small classes on arrays. No Ray, no files, no clock, no global random state."""
