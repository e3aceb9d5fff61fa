"""The verb `fuse`: a checkpoint of plain weights."""

import argparse
import shlex
import sys


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `fuse` to the command line."""
    fuse = verbs.add_parser(
        "fuse",
        help="turn a checkpoint's effective weights into plain ones, for stock fairseq if it can",
        description="Writes a checkpoint of plain weights that computes what CKPT does, and that "
        "takes no σ, γ or parametrization. Post-LN and pre-LN models of translation and language "
        "load without this plugin then; all others are of this plugin's plain architectures. The "
        "state of the optimizer is left out: the file is for generating, and for fine-tuning by "
        "--finetune-from-model.",
    )
    fuse.add_argument("checkpoint", metavar="CKPT", help="a file that fairseq-train saved")
    fuse.add_argument("out", metavar="OUT", help="the file to write; it must not exist")
    fuse.add_argument(
        "--data",
        metavar="DIR",
        help="the binarised data, for its dictionaries (default: as CKPT was trained with)",
    )
    fuse.set_defaults(run=_fuse)


def _fuse(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    import logging

    from sigma_fairseq.checkpoints.files import CheckpointError
    from sigma_fairseq.checkpoints.fuse import fuse_checkpoint

    # fairseq reports every file it reads.
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    try:
        fused = fuse_checkpoint(options.checkpoint, options.out, options.data)
    except CheckpointError as error:
        print(f"sigma-fairseq fuse: {error}", file=sys.stderr)
        return 1
    plugin = ""
    if fused.lacking is None:
        print(f"{options.out}: plain weights of stock fairseq; loads without the plugin")
    else:
        print(
            f"{options.out}: plain weights; needs --user-dir: stock fairseq has no {fused.lacking}"
        )
        plugin = '--user-dir "$(sigma-fairseq user-dir)" '
    verb = "eval-lm" if fused.task == "language_modeling" else "generate"
    print(
        f"  fairseq-{verb} {shlex.quote(fused.data)} {plugin}--task {fused.task} "
        f"--path {shlex.quote(options.out)}"
    )
    return 0
