"""The persona and the warm-up of conversations that benchmarks and validations measure."""

PERSONA = "You enjoy having a good conversation."
WARM_UP_FRAMES = 20
