"""A demonstration in minutes on a CPU: how hot a learning rate deep models bear.

`run.run_demo` is the whole of it; `sigma-fairseq demo` calls it.
"""
