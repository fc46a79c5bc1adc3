"""Season lengths: how many steps the main cycle of a series has."""

from __future__ import annotations

import re
from pathlib import Path

_CYCLES = {
    "min": 1440,
    "h": 24,
    "D": 7,
    "B": 5,
    "W": 52,
    "M": 12,
    "Q": 4,
    "Y": 1,
    "SM": 24,
    "WOM": 12,
    "LWOM": 12,
}
"""By the unit of a pandas alias (also of business months and the like): a day for hours and minutes, a week
for days, a year above."""

ARCHIVE_ALIASES = {
    "yearly": "Y",
    "quarterly": "Q",
    "monthly": "M",
    "weekly": "W",
    "daily": "D",
    "hourly": "h",
    "half_hourly": "30min",
    "10_minutes": "10min",
    "minutely": "min",
    "4_seconds": "4s",
}
"""The pandas alias of each word that Monash and M4 files use."""


def season_of(frequency: str | None) -> int | None:
    """Steps of the main cycle of a pandas alias (``15min``, ``W-TUE``) or an archive's word (``Weekly``).

    None where the frequency is unknown or its usual cycle is not a whole number of steps.
    """
    alias = ARCHIVE_ALIASES.get((frequency or "").lower(), frequency or "")
    match = re.fullmatch(r"(\d*)B?([A-Za-z]+?)([SE]?)(-[A-Z0-9-]+)?", alias)
    cycle = _CYCLES.get(match[2]) if match else None
    if match is None or cycle is None:
        return None
    count = int(match[1] or 1)
    return max(1, cycle // count) if cycle == 1 or cycle % count == 0 else None


def season_length(setting: int | None, cataloged: int | None, frequency: str | None) -> int | None:
    """The season m of data of any kind: ``data.season``, else the catalog's, else the frequency's.

    The catalog has the M4 competition's m for its own sets (protocol §3), where a day and a week have none.
    None where nothing says it.
    """
    return setting or cataloged or season_of(frequency)


def season_notices(
    setting: int | None, cataloged: int | None, frequency: str | None, source: str
) -> list[str]:
    """Notices about a season that was inferred."""
    season = None if setting or cataloged else season_of(frequency)
    inferred = (
        f"season length m = {season}, inferred from the frequency {frequency}; data.season sets another"
    )
    return [f"{Path(source).name}: {inferred}"] if season else []  # reports name no folders
