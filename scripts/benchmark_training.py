"""The trainings that `benchmark.py` times: models, random batches, and steps taken part by part."""

import resource
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from fairseq import models, optim
from fairseq.criterions import FairseqCriterion
from fairseq.criterions.adaptive_loss import AdaptiveLoss
from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.data import Dictionary
from fairseq.optim import AMPOptimizer
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sigma_fairseq  # noqa: F401 (registers the architectures)
from sigma_fairseq.speech.dictionary import LetterDictionary

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WARM_UP = 3

#: Of ours; `stock` is fairseq's own model, post-LN.
METHODS: dict[str, dict[str, str]] = {
    "stock": {},
    "postln": {"norm": "postln"},
    "reparam_postln": {"norm": "postln", "reparam": "sigma"},
    "reparam_deepnorm": {"norm": "deepnorm", "reparam": "sigma"},
    "reparam_noln": {"norm": "noln", "reparam": "sigma"},
    "spectral_norm": {"norm": "postln", "reparam": "spectral_norm"},
}
PRECISIONS = {"fp32": None, "amp-bf16": torch.bfloat16, "amp-fp16": torch.float16}
PARTS = ("power iteration", "forward", "backward", "optimizer")

#: Of the longest sentence of a translation; sentences have from three quarters of it on.
SENTENCE = 32
#: Of a language model.
BLOCK = 512
#: Of the longest utterance.
SECONDS = 15
FRAMES = 100  # of a second
LETTERS = 12  # of a second


@dataclass(frozen=True)
class Setting:
    """What is the same for all models of a comparison.

    Attributes:
        family: `translation`, `speech` or `lm`.
        layers: of the encoder, and as many of the decoder where there are both.
        tokens: of a micro-batch, padding included; of speech, seconds of audio.
        precision: a name of `PRECISIONS`.
        update_freq: micro-batches of an update.
    """

    family: str
    layers: int
    width: int
    ffn: int
    heads: int
    vocabulary: int
    tokens: int
    dropout: float
    precision: str
    update_freq: int


class Recipe(NamedTuple):
    """What a family's training consists of, beside the model's method."""

    stock: str
    ours: str
    model: dict[str, Any]
    task: Any
    criterion: FairseqCriterion
    optimizer: dict[str, Any]
    clip_norm: float
    sample: dict[str, Any]


class OperationCounter(TorchDispatchMode):
    """Counts the ATen operations that are dispatched while it is entered.

    An operation is one that PyTorch hands to a backend, below autograd, so that `linear` is `addmm`
    and all of a backward pass is seen. Views (`is_view` of the operator) are left out: they launch
    nothing on any device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += not operation.is_view
        return operation(*args, **(kwargs or {}))


class Stopwatch:
    """Times one part after another, on a GPU by events, without waiting for it in between."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, Any]] = [("", self._now())]

    def mark(self, part: str) -> None:
        """Ends a part, which began where the last ended."""
        self._marks.append((part, self._now()))

    def parts(self) -> dict[str, float]:
        """Milliseconds of each part, all its times together; waits for the GPU."""
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        on_gpu = DEVICE.type == "cuda"
        times = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in pairwise(self._marks):
            times[part] += begin.elapsed_time(end) if on_gpu else 1000 * (end - begin)
        return times

    @staticmethod
    def _now() -> Any:
        if DEVICE.type == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Training:
    """A model, a batch for it and its optimizer, as `fairseq-train` would have them.

    Args:
        method: a name of `METHODS`.
        setting: of the comparison.
    """

    def __init__(self, method: str, setting: Setting) -> None:
        torch.manual_seed(1)
        self.setting = setting
        self.recipe = RECIPES[setting.family](setting)
        stock = method == "stock"
        name = self.recipe.stock if stock else self.recipe.ours
        options = {**self.recipe.model, **METHODS[method]}
        if setting.family == "speech" and options.get("reparam") == "sigma":
            options["reparam_qkv"] = "qkv"  # as the recipe has it with LARS
        cfg = OmegaConf.create(
            {
                "model": {"_name": name, **options},
                "task": {
                    "tokens_per_sample": BLOCK,
                    "max_target_positions": None,
                    "add_bos_token": False,
                },
                "optimizer": self.recipe.optimizer,
                "optimization": {"lr": [1e-4]},
                "common": {"seed": 1, "tpu": False, "fp16_init_scale": 128, "min_loss_scale": 1e-4},
            }
        )
        self.model: Any = models.build_model(cfg.model, self.recipe.task).to(DEVICE).train()
        parameters = list(self.model.parameters())
        self.optimizer: Any = (
            AMPOptimizer.build_optimizer(cfg, parameters)
            if setting.precision == "amp-fp16"
            else optim.build_optimizer(cfg.optimizer, parameters)
        )

    def step(self, update: int) -> dict[str, float]:
        """Takes an update; returns milliseconds, of the whole `step` and of its `PARTS`.

        As fairseq's trainer does, without its bookkeeping: it announces the update before each
        micro-batch, divides gradients by their number, and clips.
        """
        begin = time.perf_counter()
        watch = Stopwatch()
        self.optimizer.zero_grad()
        watch.mark("optimizer")
        size = 0
        for _ in range(self.setting.update_freq):
            self.model.set_num_updates(update)
            watch.mark("power iteration")
            loss, added = self.loss()
            size += added
            watch.mark("forward")
            self.optimizer.backward(loss)
            del loss
            watch.mark("backward")
        self.optimizer.multiply_grads(1 / size)
        self.optimizer.clip_grad_norm(self.recipe.clip_norm)
        self.optimizer.step()
        watch.mark("optimizer")
        parts = watch.parts()
        return {"step": 1000 * (time.perf_counter() - begin), **parts}

    def loss(self) -> tuple[Tensor, int]:
        """Forward pass and loss of the micro-batch; the loss is a sum over as many."""
        dtype = PRECISIONS[self.setting.precision]
        with torch.autocast(DEVICE.type, dtype, enabled=dtype is not None):
            loss, size, _ = self.recipe.criterion(self.model, self.recipe.sample)
        return loss.sum(), int(size)


def figures(method: str, setting: Setting) -> dict[str, int | None]:
    """What does not depend on other models: call it in a process that has done nothing else.

    Returns:
        `peak_memory`: bytes, on a GPU what PyTorch held, on a CPU what the process grew by;
        `operations` of one forward and backward pass and `power_iteration_operations`, see
        `count_operations`; `kernels` that a step launches, None without a GPU.
    """
    before = resident()
    training = Training(method, setting)
    for update in range(2):  # the second has the optimizer's state beside everything else
        training.step(update)
    on_gpu = DEVICE.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident() - before
    kernels = launches(training) if on_gpu else None
    del training
    operations, iteration = count_operations(method, setting)
    return {
        "peak_memory": peak,
        "operations": operations,
        "power_iteration_operations": iteration,
        "kernels": kernels,
    }


def count_operations(method: str, setting: Setting) -> tuple[int, int]:
    """ATen operations, by `OperationCounter`, of a model without dropout that has taken a step.

    Returns:
        Those of the forward and backward pass of one micro-batch into gradients that are not there
        yet, and those of the power iteration of an update.
    """
    training = Training(method, replace(setting, dropout=0.0, update_freq=1))
    training.step(0)
    training.optimizer.zero_grad()
    with OperationCounter() as iteration:
        training.model.set_num_updates(1)
    with OperationCounter() as passes:
        training.optimizer.backward(training.loss()[0])
    return passes.count, iteration.count


def launches(training: Training) -> int:
    """Kernels that a step launches on the GPU."""
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        training.step(2)
    names = ("cudaLaunchKernel", "cuLaunchKernel")
    return sum(event.count for event in profile.key_averages() if event.key.startswith(names))


def resident() -> int:
    """The largest size this process has had, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def take_turns(methods: list[str], setting: Setting, steps: int) -> dict[str, Any]:
    """Milliseconds of each step and its parts, method by method; their steps take turns."""
    trainings = {method: Training(method, setting) for method in methods}
    times: dict[str, Any] = {
        method: {part: [] for part in ("step", *PARTS)} for method in trainings
    }
    for update in range(WARM_UP + steps):
        for method, training in trainings.items():
            taken = training.step(update)
            if update >= WARM_UP:
                for part, milliseconds in taken.items():
                    times[method][part].append(milliseconds)
    return times


def generate_in_turns(methods: list[str], setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Milliseconds to translate the batch by beam search of width 5, method by method in turns.

    Models are what `fairseq-generate` makes of them, with `--fp16` or `--bf16` where the precision
    is a low one. Every hypothesis has the length of the longest sentence.
    """
    generators = {}
    for method in methods:
        training = Training(method, setting)
        training.model.make_generation_fast_()
        training.model.to(PRECISIONS[setting.precision]).eval()
        generators[method] = SequenceGenerator(
            [training.model],
            training.recipe.task.target_dictionary,
            beam_size=5,
            max_len_b=SENTENCE,
            min_len=SENTENCE,
        ).to(DEVICE)
        sample = training.recipe.sample
    times: dict[str, list[float]] = {method: [] for method in generators}
    for number in range(1 + rounds):
        for method, generator in generators.items():
            begin = time.perf_counter()
            generator(sample)
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[method].append(1000 * (time.perf_counter() - begin))
    return times


def _translation(setting: Setting) -> Recipe:
    dictionary = _dictionary(setting.vocabulary)
    sides = [
        {f"{side}_embed_dim": setting.width, f"{side}_ffn_embed_dim": setting.ffn}
        | {f"{side}_layers": setting.layers, f"{side}_attention_heads": setting.heads}
        for side in ("encoder", "decoder")
    ]
    shape = (setting.tokens // SENTENCE, SENTENCE)
    source, target, previous = torch.randint(dictionary.nspecial, len(dictionary), (3, *shape))
    lengths = torch.randint(3 * SENTENCE // 4, SENTENCE + 1, (2, shape[0], 1))
    places = torch.arange(SENTENCE)
    source[places < SENTENCE - lengths[0]] = dictionary.pad()
    target[places >= lengths[1]] = previous[places >= lengths[1]] = dictionary.pad()
    net_input = {
        "src_tokens": source.to(DEVICE),
        "src_lengths": lengths[0].squeeze(1).to(DEVICE),
        "prev_output_tokens": previous.to(DEVICE),
    }
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return Recipe(
        stock="transformer",
        ours="transformer_postln_6l",
        model={**sides[0], **sides[1], "dropout": setting.dropout, "share_all_embeddings": True}
        | {"max_source_positions": 1024, "max_target_positions": 1024},
        task=task,
        criterion=LabelSmoothedCrossEntropyCriterion(task, False, 0.1).train(),
        optimizer={"_name": "adam", "adam_betas": "(0.9, 0.98)", "weight_decay": 1e-4},
        clip_norm=0.0,
        sample={
            "net_input": net_input,
            "target": target.to(DEVICE),
            "ntokens": int(lengths[1].sum()),
        },
    )


def _speech(setting: Setting) -> Recipe:
    dictionary = LetterDictionary()
    for number in range(setting.vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    seconds = min(SECONDS, setting.tokens)
    utterances = setting.tokens // seconds
    lengths = torch.randint(3 * FRAMES * seconds // 4, FRAMES * seconds + 1, (utterances, 1))
    padding = torch.arange(FRAMES * seconds) >= lengths
    labels = torch.randint(1, len(dictionary), (utterances, 3 * LETTERS * seconds // 4))
    task = SimpleNamespace(
        data_cfg=SimpleNamespace(input_feat_per_channel=80), target_dictionary=dictionary
    )
    return Recipe(
        stock="",
        ours="ctc_transformer_postln_36l",
        model={
            "encoder_layers": setting.layers,
            "encoder_embed_dim": setting.width,
            "encoder_ffn_embed_dim": setting.ffn,
            "encoder_attention_heads": setting.heads,
            "dropout_input": setting.dropout,
            "activation_dropout": setting.dropout,
            "attention_dropout": _attention_dropout(setting),
            # Every step does the same work.
            "encoder_layerdrop": 0.0,
        },
        task=task,
        criterion=CtcCriterion(CtcCriterionConfig(sentence_avg=True, zero_infinity=True), task),
        optimizer={"_name": "lars"},
        clip_norm=1.0,
        sample={
            "net_input": {
                "source": torch.randn(utterances, FRAMES * seconds, 80).to(DEVICE),
                "padding_mask": padding.to(DEVICE),
            },
            "target": labels.to(DEVICE),
            "ntokens": labels.numel(),
            "id": torch.arange(utterances),
        },
    )


def _language_model(setting: Setting) -> Recipe:
    dictionary = _dictionary(setting.vocabulary)
    # Those of WikiText-103 at its size of the vocabulary, in proportion at others.
    cutoff = ",".join(str(bound * setting.vocabulary // 267_744) for bound in (20_000, 60_000))
    block = min(BLOCK, setting.tokens)
    shape = (setting.tokens // block, block + 1)
    # Words about as frequent as in text: by their rank to the power of -1.2.
    frequency = torch.arange(1.0, len(dictionary) - dictionary.nspecial + 1) ** -1.2
    words = frequency.multinomial(shape[0] * shape[1], replacement=True)
    words = (dictionary.nspecial + words).view(shape).to(DEVICE)
    task = SimpleNamespace(
        source_dictionary=dictionary, target_dictionary=dictionary, args=SimpleNamespace(data=None)
    )
    return Recipe(
        stock="transformer_lm",
        ours="transformer_lm_postln_wiki103_16l",
        model={
            "decoder_layers": setting.layers,
            **{f"decoder_{end}_dim": setting.width for end in ("input", "embed", "output")},
            "decoder_ffn_embed_dim": setting.ffn,
            "decoder_attention_heads": setting.heads,
            "dropout": setting.dropout,
            "activation_dropout": setting.dropout,
            "attention_dropout": _attention_dropout(setting),
            "adaptive_softmax_dropout": setting.dropout,
            "adaptive_input": True,
            "adaptive_input_cutoff": cutoff,
            "adaptive_softmax_cutoff": cutoff,
            "tie_adaptive_weights": True,
            "tie_adaptive_proj": True,
            "no_decoder_final_norm": True,
            "max_target_positions": BLOCK,
        },
        task=task,
        criterion=AdaptiveLoss(task, sentence_avg=False),
        optimizer={"_name": "nag", "momentum": 0.99, "weight_decay": 0.0},
        clip_norm=0.1,
        sample={
            "net_input": {
                "src_tokens": words[:, :-1],
                "src_lengths": torch.full((shape[0],), block, device=DEVICE),
            },
            "target": words[:, 1:].contiguous(),
            "ntokens": shape[0] * block,
        },
    )


RECIPES = {"translation": _translation, "speech": _speech, "lm": _language_model}


def _dictionary(size: int) -> Dictionary:
    dictionary = Dictionary()
    for number in range(size - len(dictionary)):
        dictionary.add_symbol(str(number))
    return dictionary


def _attention_dropout(setting: Setting) -> float:
    # PyTorch's attention has no dropout on the CPU; on a GPU it costs next to nothing.
    return setting.dropout if DEVICE.type == "cuda" else 0.0
