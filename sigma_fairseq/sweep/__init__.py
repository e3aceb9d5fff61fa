"""Many trainings from one file, and their table: methods by depths by seeds by any option's values.

`settings.load_sweep` reads the file, `run.run_sweep` trains, evaluates and makes the tables;
`sigma-fairseq sweep` calls them.
"""
