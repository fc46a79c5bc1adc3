"""One-for-All in JAX: a frozen GPT-2 adapted to time series by rank-stabilised low-rank adapters."""

__version__ = "0.1.0"
