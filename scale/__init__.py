"""Many servers behind one address: an application of Ray Serve, on this machine or on a cluster. Called by `cli.scaling`.

`launch`, `here` and `cluster` start it, `application` describes it to Ray, and `replica` is one server in it. A replica's
`bridge` connects Serve with the server, through a `tunnel` for each WebSocket. The extra `scale` installs Ray.
"""
