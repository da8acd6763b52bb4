"""Examines this machine: each module checks one thing, and `examination` collects their findings. Called by `cli.doctor`.

This package imports only the standard library and the plain data of `pplex.runtime`. Everything else is imported in a
separate process (`probe`). So a missing, broken or crashing library becomes a finding, and the examination continues.
"""
