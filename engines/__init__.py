"""Compiles a bundle's graphs into engines for a GPU, and plans and reports their memory: called by `export` and `cli`."""
