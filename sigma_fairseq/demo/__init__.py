"""Demonstrations in minutes on a CPU: which deep models train, and how hot a rate they bear.

`run.run_demo` runs one, of `translation`, `speech` or `language_model`, for `sigma-fairseq demo`.
"""
