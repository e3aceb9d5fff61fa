"""The verb `import`: a checkpoint of stock fairseq with σReparam."""

import argparse
import shlex
import sys

from sigma_fairseq.cli.arguments import whole_number


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `import` to the command line."""
    importer = verbs.add_parser(
        "import",
        help="put σReparam on a checkpoint of stock fairseq's transformer, for fine-tuning",
        description="Writes a checkpoint with σReparam that computes what CKPT, of fairseq's own "
        "transformer or transformer_lm, computes: every weight stays as it is, and γ = σ(W). "
        "Prints the options by which fairseq-train fine-tunes it.",
    )
    importer.add_argument("checkpoint", metavar="CKPT", help="a file that fairseq-train saved")
    importer.add_argument("out", metavar="OUT", help="the file to write; it must not exist")
    importer.add_argument(
        "--arch",
        required=True,
        metavar="ARCH",
        help="the architecture of this plugin with the depth and norm placement of CKPT, such as "
        "transformer_reparam_postln_6l or transformer_preln_6l, whose weights get σReparam too; "
        "widths and everything else are those of CKPT",
    )
    for stack in ("encoder", "decoder"):
        importer.add_argument(
            f"--{stack}-layers",
            type=whole_number(1),
            metavar="N",
            help=f"layers of the {stack}, where no architecture has those of CKPT",
        )
    importer.add_argument(
        "--reparam-qkv",
        choices=("separate", "qk", "qkv"),
        default="separate",
        help="which projections of an attention share one σ and one γ (default: %(default)s)",
    )
    importer.add_argument(
        "--data",
        metavar="DIR",
        help="the binarised data, for its dictionaries (default: as CKPT was trained with)",
    )
    importer.set_defaults(run=_import)


def _import(options: argparse.Namespace) -> int:
    # Not before it is asked for: other verbs need none of it.
    import logging

    from sigma_fairseq.checkpoints.files import CheckpointError
    from sigma_fairseq.checkpoints.import_stock import import_checkpoint

    # fairseq reports every file it reads.
    logging.getLogger("fairseq").setLevel(logging.WARNING)
    depths = {"encoder_layers": options.encoder_layers, "decoder_layers": options.decoder_layers}
    try:
        imported = import_checkpoint(
            options.checkpoint,
            options.out,
            options.arch,
            qkv=options.reparam_qkv,
            depths={name: depth for name, depth in depths.items() if depth is not None},
            data=options.data,
        )
    except CheckpointError as error:
        print(f"sigma-fairseq import: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: σReparam with γ = σ(W), computes what {options.checkpoint} does")
    print(
        f'  fairseq-train {shlex.quote(imported.data)} --user-dir "$(sigma-fairseq user-dir)" '
        f"--finetune-from-model {shlex.quote(options.out)} {shlex.join(imported.options)} ..."
    )
    return 0
