"""Refuse words that only this project would use; prints ``FILE:LINE: WORD → WHAT TO WRITE INSTEAD``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

WORDS = {
    r"told(?! apart)": "stated, reported, found",
    r"tells? (?:it|them|of|how|that|which)": "states, reports, gives",
    r"beside": "next to, with, compared with",
    r"stands?(?! for)": "is, appears",
    r"what it stands for": "design goals",
    r"go(?:es|ing)? on": "continues, resumes",
    r"anew": "again, from scratch",
    r"hangs? on": "depends on",
    r"of (?:its|their) own": "its own, separate",
    r"on its own account": "independently",
    r"(?:first|second|that) door": "command line, Python API",
    r"without a word|in silence": "silently",
    r"(?:is|are|be|lie|stays?|written) whole|whole or (?:not|nothing)": "complete",
    r"(?:a|the|trained|best) controls?(?! characters?| groups?)": "baseline",
    r"step sizes?": "learning rate",
    r"filled up": "padded",
    r"could not be had": "is not available",
    r"yardsticks?": "reference",
    r"not given:": "default:",
    r"something else than": "not a",
    r"for ever": "forever",
    r"catalogue\w*": "catalog",
    r"(?:behavi|col|neighb)our\w*": "-or (American spelling)",
    r"(?:de-)?(?:initial|normal|optim|organ|recogn|stabil|standard|summar)is(?:e[dsr]?s?|ing|ation)": "-ize",
}
"""Regular expressions of entire words, in any case, and what to write instead."""

ALLOWED = {"tools/words.py": ".*", "tests/test_words.py": ".*"}
"""Parts of lines, by file, that may contain such words."""

SEARCHED = ("*.py", "*.md", "*.yaml", "*.toml", "*.ipynb")
LONGEST = 2000
"""Longer lines are the pictures of notebooks."""


def findings(path: Path) -> list[str]:
    """One line per word that a file should not contain."""
    found, allowed = [], ALLOWED.get(path.as_posix(), r"(?!)")
    for number, line in enumerate(path.read_text().splitlines(), 1):
        text = "" if len(line) > LONGEST else re.sub(allowed, "", line)
        for pattern, instead in WORDS.items():
            hits = re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text, re.IGNORECASE)
            found += [f"{path}:{number}: {hit[0]} → {instead}" for hit in hits]
    return found


def main() -> int:
    """Search every file that git tracks below the working folder."""
    listed = subprocess.run(["git", "ls-files", *SEARCHED], capture_output=True, text=True, check=True).stdout
    found = [line for name in listed.splitlines() for line in findings(Path(name))]
    print("\n".join(found) or "no private words")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
