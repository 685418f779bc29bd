"""Vectors and terms to ranked passages: exact search, and BM25."""
