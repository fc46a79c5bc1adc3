"""The check for words that only this project would use, tools/words.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
words: Any = importlib.import_module("words")


def test_each_word_is_named_with_its_line_and_a_replacement(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("fine\nThe run goes on.\n\nTold anew, in any behaviour\n")
    assert words.findings(path) == [
        f"{path}:2: goes on → continues, resumes",
        f"{path}:4: Told → stated, reported, found",
        f"{path}:4: anew → again, from scratch",
        f"{path}:4: behaviour → -or (American spelling)",
    ]


@pytest.mark.parametrize(
    "text", ["told apart", "stands for", "standard", "besides", "a control group", "renew"]
)
def test_ordinary_words_pass(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    assert not words.findings(tmp_path / "a.py")


def test_what_is_allowed_in_a_file_passes_there_only(tmp_path, monkeypatch):
    path = tmp_path / "a.md"
    path.write_text("It goes on here, and it goes on there.")
    monkeypatch.setitem(words.ALLOWED, path.as_posix(), "goes on here")
    assert len(words.findings(path)) == 1


def test_pictures_of_notebooks_are_not_searched(tmp_path):
    path = tmp_path / "a.ipynb"
    path.write_text(f"anew {'A' * words.LONGEST}")
    assert not words.findings(path)
