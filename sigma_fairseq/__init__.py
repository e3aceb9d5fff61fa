"""A fairseq plugin for deep sequence models that train stably: σReparam (ICML 2023).

`fairseq-train --user-dir` points at this folder; importing it registers everything with fairseq.
Without fairseq installed, `sigma_fairseq.reparam` (plain PyTorch) works on its own.
"""

from importlib.util import find_spec

if find_spec("fairseq") is not None:
    from sigma_fairseq.checkpoints import safe_mode as safe_mode
    from sigma_fairseq.criterions import monitored as monitored
    from sigma_fairseq.models.language_model import LanguageModel as LanguageModel
    from sigma_fairseq.models.speech import SpeechModel as SpeechModel
    from sigma_fairseq.models.translation import TranslationModel as TranslationModel
    from sigma_fairseq.optim.lars import FairseqLars as FairseqLars
    from sigma_fairseq.tasks.ctc_speech import CtcSpeechTask as CtcSpeechTask

__version__ = "0.1.0"
