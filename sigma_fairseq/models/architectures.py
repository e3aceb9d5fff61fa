"""An architecture is a row of a table: a name, and the defaults it gives a family's options."""

import dataclasses
from typing import Any

from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model


def register_architecture(
    name: str,
    family: type[BaseFairseqModel],
    config: type[FairseqDataclass],
    defaults: dict[str, Any],
) -> None:
    """Registers one architecture: a model of its own, so that Hydra knows it by name too.

    Args:
        name: for `--arch`.
        family: the model.
        config: its options.
        defaults: by the names of fields of `config`.
    """
    fields = {f.name: f for f in dataclasses.fields(config)}
    overridden = [
        (key, fields[key].type, dataclasses.field(default=value, metadata=fields[key].metadata))
        for key, value in defaults.items()
    ]
    options = dataclasses.make_dataclass(f"{name}_config", overridden, bases=(config,))
    doc = f"{defaults}; see `{family.__name__}`."
    register_model(name, dataclass=options)(type(name, (family,), {"__doc__": doc}))
