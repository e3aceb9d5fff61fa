"""Demonstrations in minutes on a CPU: how hot a learning rate deep models bear.

`run.run_demo` runs one, of `translation` or of `speech`; `sigma-fairseq demo` calls it.
"""
