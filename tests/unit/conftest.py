"""Makes the modules importable by their plain names: `import tuning`. What they need of Salt's
loader (`__salt__`, `__pillar__`, ...) isn't there, so only what is pure can be tested like this."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "_modules"), str(ROOT / "_grains")]
