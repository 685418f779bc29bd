"""Answer requests over HTTP with the models that a run kept."""
