"""The four graphs, in the order in which a frame runs them. This module imports no library.

    user's audio -> mimi_encode -> user's codes -> token ring, temporal
    token ring   -> temporal    -> text token, hidden state
                 -> depth       -> agent's codes -> token ring
    token ring   -> mimi_decode -> agent's audio

The language graphs also run without the codec.
"""

GRAPH_NAMES = ("mimi_encode", "temporal", "depth", "mimi_decode")
LANGUAGE_GRAPHS = ("temporal", "depth")
CODEC_GRAPHS = ("mimi_encode", "mimi_decode")
