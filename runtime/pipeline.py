"""The four graphs, in the order in which a frame runs them. This module imports no library.

    user's audio -> mimi_encode -> user's codes -> token ring
    token ring   -> temporal    -> text token, hidden state
                 -> depth       -> agent's codes -> token ring
    token ring   -> mimi_decode -> agent's audio

The language graphs also run without the codec. The model reads a frame's user codes in the next frame at the earliest. So
nothing in a frame waits for `mimi_encode`, and a device may run it at the same time as the other graphs.
"""

GRAPH_NAMES = ("mimi_encode", "temporal", "depth", "mimi_decode")
LANGUAGE_GRAPHS = ("temporal", "depth")
BESIDE = "mimi_encode"  # the graph that runs at the same time as the others
