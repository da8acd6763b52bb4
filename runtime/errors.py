"""The errors that a user can see, under one base class. Used by all packages."""


class PplexError(Exception):
    """Base of all errors whose message tells the user what is wrong and what to do."""


class ConfigError(PplexError):
    """A model configuration that is incomplete, inconsistent or of another architecture."""


class CheckpointError(PplexError):
    """A checkpoint that is missing, damaged or does not fit its configuration."""


class BundleError(PplexError):
    """A bundle that is missing, damaged, or made by another version."""


class AudioError(PplexError):
    """Audio that cannot be read or used."""


class AudioWarning(UserWarning):
    """A note about audio that is used, but not exactly as it was given. Not an error."""


class OutputError(PplexError):
    """A result that cannot be written to the given place."""


class PromptError(PplexError):
    """A voice or a persona that does not exist or does not fit."""


class NoiseError(PplexError):
    """Recorded sampling noise with a wrong shape or wrong values."""


class SlotError(PplexError):
    """No free slot for a session, or a session that is used after it was closed."""


class SteeringError(PplexError):
    """An order to a running session that cannot be followed, such as a text that nobody can say."""


class SnapshotError(PplexError):
    """A saved session that is damaged, or was saved by another bundle or version."""


class CalibrationError(PplexError):
    """Calibration recordings or statistics that are missing, damaged or from another model."""


class BuildError(PplexError):
    """A graph or an engine that could not be made."""


class EngineError(PplexError):
    """An engine that cannot run here."""


class LibraryError(EngineError):
    """A library that an engine needs is not installed, or not in the version that made the engine."""


class GpuError(EngineError):
    """A GPU that is missing, unknown, not the one an engine was built for, or that refused a call."""


class GpuMemoryError(GpuError):
    """Not enough GPU memory."""


class AccessError(PplexError):
    """A file or folder that this user may not read, or that the disk cannot read."""


class ReportError(PplexError):
    """A validation report that cannot be read or made."""


class SampleError(PplexError):
    """A sample of a benchmark that cannot be run or scored; the others can."""
