"""The WebSocket server, one process per GPU, on top of `pplex.runtime`; also its client and the load test.

Called by `cli.serving`, and by programs that use the client. The client is `client` and `client_*`. The load test is
`load`, `load_*`, `frame_counter` and `speakers`. All other modules are the server; client and load test use some of them.
"""
