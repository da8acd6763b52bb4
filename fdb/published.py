"""What others published for PersonaPlex on Full-Duplex-Bench 1.0 and ServiceDuplexBench. Called by `fdb.report`."""

from collections.abc import Mapping
from dataclasses import dataclass

from pplex.fdb.layout import Task
from pplex.fdb.metrics import ADHERENCE, ANSWER, FREQUENCY, JSD, LATENCY, SSIM, TOR

SYNTHETIC_PAUSE, CANDOR_PAUSE = "synthetic_pause_handling", "candor_pause_handling"
TURN, BACKCHANNEL, INTERRUPTION = "candor_turn_taking", "icc_backchannel", "synthetic_user_interruption"
SERVICE = Task.SERVICE  # its folder has no name of its own


@dataclass(frozen=True)
class Published:
    """A source with its date, and its values by folder (of ServiceDuplexBench: by task) and measure."""

    source: str
    date: str
    values: Mapping[str, Mapping[str, float]]

    @property
    def name(self) -> str:
        return f"{self.source}, {self.date}"

    def of(self, collection: str, task: Task) -> Mapping[str, float]:
        """The values of a folder, by measure; empty if none were published."""
        return self.values.get(SERVICE if task is Task.SERVICE else collection.rpartition("/")[2], {})


PUBLISHED = (
    Published(
        "the benchmark's README",
        "2026-02-21",
        {
            SYNTHETIC_PAUSE: {TOR: 0.584},
            CANDOR_PAUSE: {TOR: 0.662},
            BACKCHANNEL: {TOR: 0.327, FREQUENCY: 0.025, JSD: 0.649},
            TURN: {TOR: 0.992, LATENCY: 0.070},
            INTERRUPTION: {TOR: 1.000, LATENCY: 0.400, ANSWER: 4.21},
        },
    ),
    Published(
        "NVIDIA's model card",
        "2026-01-15",
        {
            SYNTHETIC_PAUSE: {TOR: 0.606},
            CANDOR_PAUSE: {TOR: 0.606},
            TURN: {TOR: 0.908, LATENCY: 0.170},
            INTERRUPTION: {TOR: 0.950, LATENCY: 0.240, ANSWER: 4.29, SSIM: 0.650},
            SERVICE: {ADHERENCE: 4.40},
        },
    ),
)
DISAGREEMENT = (
    "The published figures disagree with each other: a turn-taking TOR of 0.992 (the benchmark's README) and 0.908 (the "
    "model card), latencies of 0.07 s and 0.17 s. The standard error of a TOR is 0.04 with 137 samples, 0.06 with 55.",
    "The published words are by NeMo's parakeet-tdt-0.6b-v2, and the grades by a GPT-4 model. Other words and another "
    "judge move the figures.",
    "The model card gives one TOR for pauses, and does not say of which samples. The README does not say which definition "
    "its frequency and its JSD follow.",
)
