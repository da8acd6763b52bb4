"""The WebSocket server, one process per GPU, on top of `pplex.runtime`; nothing is served yet."""
