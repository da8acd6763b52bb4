"""The WebSocket server, one process per GPU, on top of `pplex.runtime`; also its client and the load test.

Called by `cli.serving`, and by programs that use the client. The client is `client`, `client_link` and `client_opus`. The
load test is `load`, `load_report` and `speakers`. All other modules are the server; client and load test use some of them.
"""
