"""Release tests take helpers and fixtures from the tests of the folders beside this one."""

import sys
from pathlib import Path

sys.path += [str(folder) for folder in Path(__file__).parents[1].rglob("*") if folder.is_dir()]
