"""Compiling a bundle's graphs into engines for a named GPU."""
