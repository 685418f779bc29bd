"""Texts to preference pairs: rewards, the pair, and its audit."""
