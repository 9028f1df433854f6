"""What the store asks of the garbage collector, for the whole process.

The objects of the tables are made so that the collector does not look at them (`gc=False`, tuples of such): they can
be part of no cycle. What is left is everything else, and how often it is looked at.
"""

from __future__ import annotations

import gc

# By default the youngest generation is looked through at every 700 objects, the oldest at every 70,000. New nodes of
# the tables are looked at once, each for a microsecond, so a look at 2,000 objects ends within some milliseconds, and
# so does one at the middle generation, which is kept small for that: 40,000 took 38 ms.
YOUNG_OBJECTS = 2_000
GENERATIONS = (4, 500)


def tune() -> None:
    """Have the collector look less often."""
    gc.set_threshold(YOUNG_OBJECTS, *GENERATIONS)


def settle() -> None:
    """After everything was loaded: take all that is there out of the collector's sight."""
    gc.collect()
    gc.freeze()
