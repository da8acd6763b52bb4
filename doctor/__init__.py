"""What this machine can do: each module looks at one thing, and `examination` puts their findings together.

Only the standard library and the plain data of `pplex.runtime` are imported here. Everything else is imported in a process
of its own (`probe`), so that a library that is missing, broken or crashes is a finding and not the end of the look.
"""
