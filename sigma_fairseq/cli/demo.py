"""`sigma-fairseq demo`."""

import argparse
import sys
from pathlib import Path

from sigma_fairseq.cli.arguments import cores, stopped_like_ctrl_c, whole_number
from sigma_fairseq.demo.settings import Settings


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    demo = verbs.add_parser(
        "demo",
        help="train deep translation models on the CPU, in minutes and without a download",
        description="Trains 18-layer encoder-decoder transformers to translate English number "
        "words into German ones, with fairseq's own commands on the CPU: post-LN, DeepNorm and "
        "σReparam + DeepNorm at a hot learning rate. Prints a sweep's table of them and writes a "
        "report page. Interrupted or run again, it goes on where it was: only what is missing is "
        "run.",
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="folder for data, checkpoints, logs, table and report (default: %(default)s)",
    )
    demo.add_argument(
        "--seed",
        type=whole_number(0),
        default=Settings.seed,
        metavar="N",
        help="of the numbers, the initial weights and the batches",
    )
    demo.add_argument(
        "--updates",
        type=whole_number(1),
        default=Settings.updates,
        metavar="N",
        help="length of each training (default: %(default)s)",
    )
    demo.add_argument(
        "--jobs",
        type=whole_number(1),
        default=cores(),
        metavar="N",
        help="trainings at the same time (default: the cores there are, %(default)s)",
    )
    demo.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    from sigma_fairseq.demo.run import run_demo
    from sigma_fairseq.sweep.processes import SweepError

    settings = Settings(seed=options.seed, updates=options.updates)
    try:
        with stopped_like_ctrl_c():
            print(run_demo(options.out, settings, options.jobs, sys.stderr))
    except SweepError as error:
        print(f"sigma-fairseq demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsigma-fairseq demo: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
