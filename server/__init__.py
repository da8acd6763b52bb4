"""The WebSocket server, one process per GPU, on top of `pplex.runtime`; also its client and the load test.

Called by `cli.serving`, and by programs that use the client.
"""
