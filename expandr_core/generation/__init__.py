"""Prompts to texts: the prompts, and the engines that write."""
