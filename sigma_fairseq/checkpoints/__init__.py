"""fairseq's checkpoint files: reading them safely, and turning them into other models'."""
