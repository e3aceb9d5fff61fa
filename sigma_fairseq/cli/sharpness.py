"""The verb `sharpness`: the largest Hessian eigenvalues of a checkpoint."""

import argparse
import itertools
import sys

from sigma_fairseq.cli.arguments import positive_number, whole_number
from sigma_fairseq.sweep.progress import Progress


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `sharpness` to the command line."""
    sharpness = verbs.add_parser(
        "sharpness",
        help="print the largest Hessian eigenvalues of a checkpoint's training loss",
        description="Prints the largest eigenvalues of the Hessian of a checkpoint's training "
        "loss, without dropout, on a fixed sample, beside the stability threshold of its "
        "optimizer at its learning rate: for Adam (2 + 2β1) / ((1 − β1)·lr), which is 38/lr at "
        "β1 = 0.9 (Appendix B of the paper). That leaves Adam's division by √v out, so "
        "that what Adam bears in practice depends on v too.",
    )
    sharpness.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a file that fairseq-train saved"
    )
    sharpness.add_argument(
        "data", metavar="DATA", help="the binarised data, as given to fairseq-train"
    )
    sharpness.add_argument(
        "--count",
        type=whole_number(1),
        default=5,
        metavar="N",
        help="how many eigenvalues, from the largest on (default: %(default)s)",
    )
    sharpness.add_argument(
        "--subset",
        default="train",
        metavar="NAME",
        help="part of the data that the sample is taken from (default: %(default)s)",
    )
    sharpness.add_argument(
        "--tokens",
        type=whole_number(1),
        default=4096,
        metavar="N",
        help="size of the sample: the first sentences with so many tokens (default: %(default)s)",
    )
    sharpness.add_argument(
        "--max-tokens",
        type=whole_number(1),
        default=1024,
        metavar="N",
        help="most tokens in one forward pass; less needs less memory (default: %(default)s)",
    )
    sharpness.add_argument(
        "--tolerance",
        type=positive_number,
        default=1e-3,
        metavar="X",
        help="relative accuracy of the eigenvalues (default: %(default)s)",
    )
    sharpness.add_argument(
        "--cpu", action="store_true", help="use the CPU even if there is a CUDA device"
    )
    sharpness.set_defaults(run=_sharpness)


def _sharpness(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    import logging

    import torch

    from sigma_fairseq.monitor.sharpness import SharpnessError, measure_sharpness

    # fairseq reports every file it reads.
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    progress = Progress(sys.stderr)
    products = itertools.count(1)
    try:
        result = measure_sharpness(
            options.checkpoint,
            options.data,
            subset=options.subset,
            tokens=options.tokens,
            max_tokens=options.max_tokens,
            count=options.count,
            tolerance=options.tolerance,
            device=torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu"),
            on_product=lambda: progress.status(f"{next(products)} Hessian-vector products"),
        )
    except SharpnessError as error:
        progress.end_line()
        print(f"sigma-fairseq sharpness: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.end_line()
        print("sigma-fairseq sharpness: stopped", file=sys.stderr)
        return 130
    progress.end_line()
    print(result.table())
    return 0
