"""The `sigma-fairseq` command."""

from sigma_fairseq.cli.main import main as main
