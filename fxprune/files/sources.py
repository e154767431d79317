"""How the original of a checkpoint is built: what may be written of it, and what is believed of a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fxprune.errors import FxpruneError
from fxprune.models import Source

__all__ = ["source_to_store", "trusted_source"]

# A file may set only arguments that name no file and no address.
_ARGUMENTS = ("num_classes", "in_chans", "img_size", "image_size", "global_pool", "drop_rate", "drop_path_rate",
              "dropout", "aux_logits", "transform_input", "dynamic_img_size", "reg_tokens", "class_token")  # fmt: skip
_SPEC = re.compile(r"(timm|torchvision):[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def trusted_source(file: str, source: Source | None) -> Source:
    """The source that a file names, if it is a model of timm or torchvision with harmless arguments.

    Args:
        file: what to call the file in errors.
        source: as the file has it.

    Raises:
        FxpruneError: it is anything else, or the file names none.
    """
    if source is None:
        raise FxpruneError(f"{file} does not say how the original is built: give it as original=")
    if not _SPEC.fullmatch(source.spec):
        raise FxpruneError(
            f"{file} names the model {source.spec!r}, but only timm:NAME and torchvision:NAME are built because a file "
            "says so: give the original as original="
        )
    for key, value in source.arguments.items():
        if key not in _ARGUMENTS or not _is_harmless(value):
            raise FxpruneError(
                f"{file} asks for {source.spec} with {key}={value!r:.60}, which is not passed on because a file says "
                "so: give the original as original="
            )
    return source


def source_to_store(spec: str | None, arguments: Mapping[str, Any], known: Source | None) -> Source | None:
    """The source to write into a file, with arguments as JSON has them.

    Args:
        spec: as the caller names it, with `arguments`; None for what is known.
        arguments: for the library's function.
        known: how the model was built; left out where JSON cannot hold it.

    Raises:
        FxpruneError: `load` would not build what the caller names.
    """
    if spec is None and arguments:
        raise FxpruneError(f"{', '.join(arguments)} given without source=: say which model they are for")
    source = known if spec is None else Source(spec, arguments)
    if source is None:
        return None
    try:
        source = Source(source.spec, json.loads(json.dumps(dict(source.arguments))))
    except (TypeError, ValueError) as error:
        if spec is None:
            return None
        raise FxpruneError(f"the arguments of {spec} must be numbers, strings and lists: {error}") from error
    return source if spec is None else trusted_source("source", source)


def _is_harmless(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 4 and all(type(item) is int and 0 < item < 2**16 for item in value)
    if type(value) is int:
        return 0 <= value < 2**24
    return value is None or isinstance(value, (bool, float)) or (isinstance(value, str) and value.isidentifier())
