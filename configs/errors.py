"""What a person can mend is one line; everything else is a bug, and keeps its traceback.

The `isoflop` command prints a `UserError` as one line and exits with 2: it names field, value and
remedy, and is raised before any compute is spent. A `RunError` is one line too, and exits with 1.
"""

import errno
from typing import Literal


class UserError(ValueError):
  """Input that cannot be used: the base of the three below."""


class ConfigError(UserError):
  """A field of the config has a value that it cannot have, alone or beside another field."""


class DataError(UserError):
  """A file, table or checkpoint does not hold what is asked of it."""


class UsageError(UserError):
  """A flag or an argument is missing, unknown, or does not fit what is there."""


class RunError(RuntimeError):
  """A run diverged, its machine failed it, or what was predicted of it did not hold: no bug."""


def of_the_machine(error: BaseException) -> bool:
  """Tells whether the machine refused: a full disk, a folder that is not ours, device memory."""
  if isinstance(error, OSError):
    return error.errno in (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS)
  full = any(text in str(error) for text in ("RESOURCE_EXHAUSTED", "No space left on device"))
  return isinstance(error, RuntimeError) and full


def kind(error: BaseException) -> Literal["user", "run", "bug"]:
  """Tells what a user can mend, and what the machine refused, from a bug."""
  if isinstance(error, UserError):
    return "user"
  return "run" if isinstance(error, RunError) or of_the_machine(error) else "bug"
