"""`sigma-fairseq demo`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sigma_fairseq.cli.arguments import cores, stopped_like_ctrl_c, whole_number
from sigma_fairseq.demo.settings import LanguageModelSettings, SpeechSettings, TranslationSettings

if TYPE_CHECKING:
    from sigma_fairseq.demo.run import Demo


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the verb to the command line."""
    demo = verbs.add_parser(
        "demo",
        help="train deep models on the CPU, in minutes and without a download",
        description="Trains 18-layer encoder-decoder transformers to translate English number "
        "words into German ones, with fairseq's own commands on the CPU: post-LN, DeepNorm and "
        "σReparam + DeepNorm at a hot learning rate. Prints a sweep's table of them and writes a "
        "report page. Interrupted or run again, it goes on where it was: only what is missing is "
        "run.",
    )
    other = demo.add_mutually_exclusive_group()
    other.add_argument(
        "--speech",
        action="store_true",
        help="recognise speech instead: 18-layer CTC transformers with post-LN, pre-LN and "
        "σReparam + post-LN, by LARS without warmup. The speech is synthetic, number words that "
        "are spelled in tones, a pair for each letter, with pauses and noise",
    )
    other.add_argument(
        "--lm",
        action="store_true",
        help="model language instead: transformers of Python's own help texts with σReparam and no "
        "LayerNorm, post-LN and pre-LN, by Nesterov SGD. Also prints a paragraph that the first of "
        "them writes",
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
        default=TranslationSettings.seed,
        metavar="N",
        help="of the data, the initial weights and the batches",
    )
    demo.add_argument(
        "--updates",
        type=whole_number(1),
        metavar="N",
        help=f"length of each training (default: {TranslationSettings.updates}, with --speech "
        f"{SpeechSettings.updates}, with --lm {LanguageModelSettings.updates})",
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

    try:
        with stopped_like_ctrl_c():
            print(run_demo(options.out, _demo(options), options.jobs, sys.stderr))
    except SweepError as error:
        print(f"sigma-fairseq demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nsigma-fairseq demo: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _demo(options: argparse.Namespace) -> "Demo":
    chosen = {"seed": options.seed, "updates": options.updates}
    given = {name: value for name, value in chosen.items() if value is not None}
    if options.speech:
        from sigma_fairseq.demo.speech import SpeechDemo

        return SpeechDemo(SpeechSettings(**given))
    if options.lm:
        from sigma_fairseq.demo.language_model import LanguageModelDemo

        return LanguageModelDemo(LanguageModelSettings(**given))
    from sigma_fairseq.demo.translation import TranslationDemo

    return TranslationDemo(TranslationSettings(**given))
