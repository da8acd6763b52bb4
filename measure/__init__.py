"""Shared by `bench`, `validate` and `server.load`: the machine, memory, timings, persona and warm-up."""
