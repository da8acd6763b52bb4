"""Examines this machine: each module checks one thing, and `examination` collects their findings.

Only the standard library and the plain data of `pplex.runtime` are imported here. Everything else is imported in a separate
process (`probe`), so that a library that is missing, broken or crashes becomes a finding and does not end the examination.
"""
