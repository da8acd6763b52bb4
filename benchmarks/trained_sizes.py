"""The sizes of the trained small model. Called by trained.py and its parts."""

from typing import Any

from pplex.runtime.config import ModelConfig

ARGUMENTS: dict[str, dict[str, Any]] = {
    "lm": {
        "dim": 128, "text_card": 1000, "num_heads": 4, "num_layers": 4, "hidden_scale": 4.5, "context": 512, "dep_q": 8,
        "depformer_dim": 64, "depformer_dim_feedforward": 192, "depformer_num_heads": 2, "depformer_num_layers": 2,
    },
    "seanet": {"dimension": 64, "n_filters": 8},
    "transformer": {
        "d_model": 64, "num_heads": 4, "num_layers": 2, "context": 48, "dim_feedforward": 128, "input_dimension": 64,
        "output_dimensions": [64],
    },
    "quantizer": {"dimension": 16, "n_q": 8, "input_dimension": 64, "output_dimension": 64},
}  # fmt: skip

CONFIG = ModelConfig.from_arguments(ARGUMENTS["lm"], {part: ARGUMENTS[part] for part in ARGUMENTS if part != "lm"})
