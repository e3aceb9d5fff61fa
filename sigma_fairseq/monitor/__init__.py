"""Reads a model in training from outside: entropy, norms, the bound, sharpness; changes nothing."""
