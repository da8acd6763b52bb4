"""How many replicas a load needs: by Erlang's formulas, and by a simulation of the server's own admission.

Called by `cli.fleet` and `benchmarks/fleet_run.py`.
"""
