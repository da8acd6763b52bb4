"""Full-Duplex-Bench: runs a bundle on its samples, and scores the answers by the benchmark's definitions.

`layout` knows the folders, `batch` runs them, `measures` and `score` make the numbers, `report` shows them.
"""
