"""The parts of tools/bench.py: what is measured, what it is measured beside, and how the page is written."""
