"""The errors that a user can cause, and so can mend."""


class ConfigError(ValueError):
    """A config key is unknown, of a wrong type or outside its legal values."""


class DataError(ValueError):
    """A file, row or column of the data is not what the format allows."""


class CheckpointError(ValueError):
    """A workdir or a checkpoint in it cannot be used by this run."""


class DivergenceError(RuntimeError):
    """The loss became NaN or infinite."""


class ReportError(ValueError):
    """Results cannot be put in one table, or there are none."""
