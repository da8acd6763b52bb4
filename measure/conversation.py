"""The persona and the warm-up of conversations that benchmarks and validations measure.

Called by `bench` and `validate`.
"""

PERSONA = "You enjoy having a good conversation."
WARM_UP_FRAMES = 20
