"""Benchmarks: each reports its figures, the machine, and the versions of packages. Called by `cli.benches`."""
