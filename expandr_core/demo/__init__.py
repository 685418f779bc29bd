"""The built-in world, and the texts of the tiny models."""
