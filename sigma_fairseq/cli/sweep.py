"""`sigma-fairseq sweep`."""

import argparse
import dataclasses
import sys
from pathlib import Path

from sigma_fairseq.cli.arguments import stopped_like_ctrl_c, whole_number


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    sweep = verbs.add_parser(
        "sweep",
        help="train methods by depths by seeds from a YAML file, and print their table",
        description="Trains every combination that a YAML file asks for, each with fairseq-train "
        "in a folder of its own, scores the models and prints, in Markdown, how many runs of each "
        "method diverged and what the others scored. Interrupted or run again, it goes on where "
        "it was: only what is missing or has changed is run.",
    )
    sweep.add_argument("file", type=Path, metavar="FILE.yaml", help="what to train")
    sweep.add_argument(
        "--jobs",
        type=whole_number(1),
        metavar="N",
        help="trainings at the same time (default: the file's jobs; else one on each GPU, or one "
        "on the CPU)",
    )
    sweep.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    from sigma_fairseq.sweep.processes import SweepError
    from sigma_fairseq.sweep.run import run_sweep
    from sigma_fairseq.sweep.settings import load_sweep

    try:
        sweep = load_sweep(options.file)
        if options.jobs is not None:
            sweep = dataclasses.replace(sweep, jobs=options.jobs)
        with stopped_like_ctrl_c():
            tables, failures = run_sweep(sweep, sys.stderr)
    except SweepError as error:
        print(f"sigma-fairseq sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsigma-fairseq sweep: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(tables)
    for failure in failures:
        print(f"sigma-fairseq sweep: {failure}", file=sys.stderr)
    return 1 if failures else 0
