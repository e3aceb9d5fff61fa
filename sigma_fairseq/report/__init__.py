"""From run folders to figures and one HTML page. Reads files only: no model, no fairseq."""

import logging

# fairseq's import makes every library print each of its steps.
logging.getLogger("matplotlib").setLevel(logging.WARNING)
