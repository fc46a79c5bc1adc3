"""Season lengths: how many steps the main cycle of a series has, by its frequency."""

from __future__ import annotations

import re

_ALIASES = {"min": 1440, "h": 24, "D": 7, "B": 5, "W": 52, "M": 12, "Q": 4, "Y": 1}
"""By the unit of a pandas alias (also of business months and the like): a day for hours and minutes, a week
for days, a year above."""

_ARCHIVES = {"yearly": 1, "quarterly": 4, "monthly": 12, "weekly": 1, "daily": 1, "hourly": 24}
"""By the word that Monash and M4 files use: the season m of the M4 competition (protocol §3)."""


def season_of(frequency: str | None) -> int | None:
    """Steps of the main cycle of a pandas alias (``15min``, ``W-TUE``) or an archive's word (``Weekly``).

    None where the frequency is unknown or its usual cycle is not a whole number of steps.
    """
    if (frequency or "").lower() in _ARCHIVES:
        return _ARCHIVES[(frequency or "").lower()]
    match = re.fullmatch(r"(\d*)B?([A-Za-z]+?)([SE]?)(-[A-Z]+)?", frequency or "")
    cycle = _ALIASES.get(match[2]) if match else None
    if match is None or cycle is None:
        return None
    count = int(match[1] or 1)
    return max(1, cycle // count) if cycle == 1 or cycle % count == 0 else None
