"""The persona and the warm-up of conversations that benchmarks and validations measure.

Called by `bench` and `validate`.
"""

from pplex.runtime.bundle import Bundle

PERSONA = "You enjoy having a good conversation."
WARM_UP_FRAMES = 20


def usual_prompt(bundle: Bundle) -> tuple[str | None, str]:
    """The bundle's first voice, and PERSONA; None and "" for a Moshi model, which takes no prompt."""
    return (next(iter(bundle.voices), None), PERSONA) if bundle.config.takes_prompt else (None, "")
