"""Optimizers, and what fairseq's optimizers lack."""
