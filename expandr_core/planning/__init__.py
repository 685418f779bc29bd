"""The cost of a run, predicted before it starts."""
