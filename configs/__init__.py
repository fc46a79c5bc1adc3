"""Settings files, one per experiment; a package only so that they are installed with ofa_jax."""
