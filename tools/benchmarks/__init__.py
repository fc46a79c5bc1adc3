"""The parts of tools/bench.py: what is measured, what it is compared with, and how the page is written."""
