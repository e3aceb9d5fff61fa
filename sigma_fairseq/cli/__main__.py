"""`python -m sigma_fairseq.cli`, for where the command itself is not on the path."""

import sys

from sigma_fairseq.cli.main import main

sys.exit(main())
