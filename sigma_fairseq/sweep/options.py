"""Asks fairseq whether it knows the options of a sweep, before anything is trained."""

import difflib
import io
from contextlib import redirect_stderr

from sigma_fairseq.sweep.commands import fairseq_arguments
from sigma_fairseq.sweep.processes import SweepError
from sigma_fairseq.sweep.settings import Sweep


def check_options(sweep: Sweep) -> None:
    """Parses the options of every training as fairseq-train does.

    Raises:
        SweepError: one line with the method, and what fairseq says is wrong.
    """
    from fairseq.models import ARCH_MODEL_REGISTRY
    from fairseq.options import get_training_parser, parse_args_and_arch

    for point in sweep.points:
        where, arch = f"methods: {point.method}", str(point.options["arch"])
        if arch not in ARCH_MODEL_REGISTRY:
            close = difflib.get_close_matches(arch, ARCH_MODEL_REGISTRY, 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise SweepError(f"{where}: there is no architecture {arch}{hint}")
        said = io.StringIO()
        try:
            with redirect_stderr(said):
                parse_args_and_arch(
                    get_training_parser(), fairseq_arguments(sweep.data, point.options)
                )
        except SystemExit as error:
            line = said.getvalue().strip().rpartition("\n")[2].partition("error: ")[2]
            raise SweepError(f"{where}: fairseq-train: {line}") from error
