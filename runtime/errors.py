"""The errors a user can meet, under one base class; every other module raises these."""


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
    """Audio that is used, but not quite as it was given: what a user should know of it. Not an error."""


class OutputError(PplexError):
    """A result that cannot be written where it was asked for."""


class PromptError(PplexError):
    """A voice or a persona that does not exist or does not fit."""


class NoiseError(PplexError):
    """Recorded sampling noise of the wrong shape, or that is no noise."""


class SlotError(PplexError):
    """A session asked for where no slot is free, or used after it was closed."""


class CalibrationError(PplexError):
    """Recordings or statistics to calibrate with that are missing, damaged or another model's."""


class BuildError(PplexError):
    """A graph or an engine that could not be made."""


class EngineError(PplexError):
    """An engine that cannot run here."""


class LibraryError(EngineError):
    """A library that an engine needs and that is not installed, or not in the version the engine was made with."""


class GpuError(EngineError):
    """A GPU that is not there, that nobody knows or another one than an engine was built for, or that refused a call."""


class GpuMemoryError(GpuError):
    """Less GPU memory than is asked of it."""


class AccessError(PplexError):
    """A file or folder that this user may not read, or that the disk does not give."""


class ReportError(PplexError):
    """A report of a validation that cannot be read, or one that cannot be made as asked."""
