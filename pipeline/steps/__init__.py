"""One module for each kind of step. `registry` lists them; `base` says what a step is."""
