"""Dagger gates: the module, the pass that puts them into a graph, and how they are learned."""
