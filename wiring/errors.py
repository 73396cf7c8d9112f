"""Errors a user can cause. Each carries one sentence that names the rule and the value."""


class WiringError(Exception):
    """Base of every error that is the caller's to mend; the CLI prints it without a traceback."""


class ConfigError(WiringError):
    """A setting has an unknown key, a wrong type or a value out of range."""


class UnknownNameError(WiringError):
    """No method, space, algorithm or data set is registered under this name."""


class TopologyError(WiringError):
    """A graph breaks a rule of neural graphs: a cycle, a dangling edge, a weight that is NaN."""


class BudgetError(WiringError):
    """An edge budget is outside 1..usable edges."""


class DataError(WiringError):
    """A data set is missing, broken or unusable."""


class SolverError(WiringError):
    """A differential equation cannot be solved within the tolerances asked for."""


class CheckpointError(WiringError):
    """A checkpoint or an exported network is damaged or belongs to something else."""


class StudyError(WiringError):
    """A study directory is missing, half-written, in use, or of another version."""


class ClusterError(WiringError):
    """A Ray cluster cannot be reached, started or stopped."""


class TrackingError(WiringError):
    """A tracking server cannot be used."""
