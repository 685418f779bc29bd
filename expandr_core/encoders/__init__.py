"""Texts to vectors: any retriever, and the vector of an expanded query."""
