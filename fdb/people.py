"""How people spread their backchannels over the samples, from a checkout of the benchmark. Called by `cli.fdb`."""

import math
from pathlib import Path
from typing import Any

from pplex.fdb.scoring import People
from pplex.fdb.words import read_json
from pplex.runtime.errors import ConfigError, SampleError
from pplex.runtime.files import files_below, is_folder

PEOPLE_FILE = "icc_gt_distribution.json"


def read_people(checkout: Path) -> People:
    """The distributions in a checkout, by the id of a sample. Raises ConfigError."""
    if not is_folder(checkout):
        raise ConfigError(f"{checkout} is not a folder. Name a checkout of Full-Duplex-Bench: --repo FOLDER")
    path = next((path for path in files_below(checkout) if path.name == PEOPLE_FILE), None)
    if path is None:
        raise ConfigError(
            f"{checkout} has no {PEOPLE_FILE}. Name a checkout of Full-Duplex-Bench, or leave --repo out."
        )
    try:
        data = read_json(path)
    except SampleError as error:
        raise ConfigError(f"{path}: {error}. Check the checkout: git status") from error
    wrong = [] if isinstance(data, dict) else ["everything"]
    wrong += [str(key) for key, weights in data.items() if not _are_weights(weights)] if not wrong else []
    if wrong:
        raise ConfigError(
            f"{path} should have a list of weights for each sample; {len(wrong)} are none, such as {wrong[0][:40]}.\n"
            "Check the checkout: git status"
        )
    return {str(key): tuple(map(float, weights)) for key, weights in data.items()}


def _are_weights(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one < math.inf for one in value)
    return numbers and sum(value) > 0
