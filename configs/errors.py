"""What a person can mend is one line; everything else is a bug, and keeps its traceback.

The `isoflop` command prints a `UserError` as one line and exits with 2: it names field, value and
remedy, and is raised before any compute is spent. A `RunError` is one line too, and exits with 1.
"""


class UserError(ValueError):
  """Input that cannot be used: the base of the three below."""


class ConfigError(UserError):
  """A field of the config has a value that it cannot have, alone or beside another field."""


class DataError(UserError):
  """A file, table or checkpoint does not hold what is asked of it."""


class UsageError(UserError):
  """A flag or an argument is missing, unknown, or does not fit what is there."""


class RunError(RuntimeError):
  """A run could not go on, by no fault of the code: it diverged, or its machine failed it."""
