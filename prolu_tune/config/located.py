"""Turns pydantic's complaints about a document into `file:line:column: key, value, remedy`."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prolu_tune.config.yaml import Document, KeyPath
from prolu_tune.errors import InputError

OTHER_TOOLS = {
    "activation_dim": "sae.d_in",
    "activation_fn": "architectures",
    "adam_beta1": "training.adam_betas",
    "batch_size_tokens": "training.batch_size",
    "betas": "training.adam_betas",
    "context_size": "activations.context_length",
    "cpus": "resources.cpus_per_trial",
    "ctx_len": "activations.context_length",
    "ctx_length": "activations.context_length",
    "d_hidden": "sae.d_sae",
    "d_model": "sae.d_in",
    "data": "activations.dataset",
    "dataset_path": "activations.dataset",
    "dead_feature_threshold": "resampling.dead_frequency",
    "dead_feature_window": "resampling.window_steps",
    "device": "resources.gpus_per_trial",
    "dict_size": "sae.d_sae",
    "dtype": "training.precision",
    "expansion": "sae.expansion_factor",
    "feature_sampling_window": "resampling.window_steps",
    "gpus": "resources.gpus_per_trial",
    "hook": "activations.hook_name",
    "hook_point": "activations.hook_name",
    "l1": "architectures.NAME.l1_coefficient",
    "l1_alpha": "architectures.NAME.l1_coefficient",
    "l1_coefficient": "architectures.NAME.l1_coefficient",
    "l1_coeff": "architectures.NAME.l1_coefficient",
    "l1_coefficients": "architectures.NAME.l1_coefficient",
    "l1_lambda": "architectures.NAME.l1_coefficient",
    "l1_penalty": "architectures.NAME.l1_coefficient",
    "layer": "activations.hook_name",
    "learning_rate": "training.lr",
    "lr_decay_steps": "training.cooldown_steps",
    "lr_warm_up_steps": "training.warmup_steps",
    "max_concurrent": "resources.max_concurrent_trials",
    "method": "search.kind",
    "model_name": "activations.model",
    "n_batches": "training.num_tokens",
    "n_latents": "sae.d_sae",
    "num_latents": "sae.d_sae",
    "num_samples": "search.max_trials",
    "parameters": "architectures",
    "resample_encoder_scale": "resampling.encoder_scale",
    "resample_steps": "resampling.steps",
    "seq_len": "activations.context_length",
    "sparsity_coefficient": "architectures.NAME.l1_coefficient",
    "sparsity_penalty": "architectures.NAME.l1_coefficient",
    "steps": "training.num_tokens",
    "tokens": "training.num_tokens",
    "total_training_tokens": "training.num_tokens",
    "train_batch_size": "training.batch_size",
    "train_batch_size_tokens": "training.batch_size",
    "training_tokens": "training.num_tokens",
    "warmup": "training.warmup_steps",
    "width": "sae.d_sae",
}
"""What SAELens, dictionary_learning and others call it, and where it stands here."""


class RelationError(ValueError):
    """A rule between several keys is broken; `path` names the one to change."""

    def __init__(self, path: KeyPath, message: str):
        super().__init__(message)
        self.path = path


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Returns every dotted key of a tree of models, sections and leaves."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from dotted_keys(info.annotation, f"{prefix}{name}.")


def nearest_key(key: str, section: str, siblings: Iterable[str], everything: Iterable[str]) -> str | None:
    """Returns the key a person meant by `key` inside `section`: another tool's name, a key of another section, a misspelling.

    The answer is relative when it stands in the same section, dotted from the top otherwise.
    """
    siblings, everything = list(siblings), list(everything)
    flat = key.strip().lower().replace("-", "_")
    known = OTHER_TOOLS.get(flat)
    elsewhere = [full for full in everything if full.rpartition(".")[2] == flat and full != f"{section}.{key}"]
    close = difflib.get_close_matches(flat, siblings, n=1, cutoff=0.6)
    if flat in siblings or (close and known is None and flat.rstrip("s") == close[0].rstrip("s")):
        return close[0]
    for found in (known, elsewhere[0] if elsewhere else None):
        if found is not None:
            parent, _, leaf = found.rpartition(".")
            return leaf if parent == section or leaf in siblings else found
    if close:
        return close[0]
    far = difflib.get_close_matches(flat, [full.rpartition(".")[2] for full in everything], n=1, cutoff=0.75)
    return next((full for full in everything if far and full.rpartition(".")[2] == far[0]), None)


def input_error(error: ValidationError, document: Document, model: type[BaseModel]) -> InputError:
    """Returns the error a user sees: one line for each thing that is wrong."""
    complaints = error.errors(include_url=False)
    faulty = {complaint["loc"] for complaint in complaints}
    unknown = [complaint["loc"] for complaint in complaints if complaint["type"] == "extra_forbidden"]
    misspelt = {(*loc[:-1], nearest_key(str(loc[-1]), dotted(loc[:-1]), _siblings(model, loc[:-1]), ())) for loc in unknown}
    lines: dict[KeyPath, str] = {}
    for complaint in complaints:
        loc = complaint["loc"]
        if complaint["type"] == "missing" and loc in misspelt:
            continue
        if complaint["type"] == "too_short" and any(other[: len(loc)] == loc for other in faulty - {loc}):
            continue  # pydantic leaves out faulty items and then finds the list too short
        cause = complaint.get("ctx", {}).get("error")
        path = (*loc, *cause.path) if isinstance(cause, RelationError) else loc
        place, found = document.whereabouts(path, of_key=complaint["type"] == "extra_forbidden")
        lines.setdefault(found, f"{place}: {_sentence(complaint, found, model)}")
    return InputError("\n".join(lines.values()))


def dotted(path: KeyPath) -> str:
    """Returns a path as a person writes it, such as `architectures.relu+l1.l1_coefficient[0]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _sentence(complaint: Any, found: KeyPath, model: type[BaseModel]) -> str:
    """Returns key, what is wrong with the value, and what to do about it."""
    key, kind, context, given = dotted(found), complaint["type"], complaint.get("ctx", {}), complaint["input"]
    if kind == "extra_forbidden":
        siblings = _siblings(model, complaint["loc"][:-1])
        meant = nearest_key(str(found[-1]), dotted(found[:-1]), siblings, dotted_keys(model))
        remedy = f"did you mean {meant}?" if meant else f"choose one of {', '.join(siblings)}"
        return f"{key} is not a key; {remedy}"
    if kind == "missing":
        missing = str(complaint["loc"][-1])
        return f"{f'{key}.' if key else ''}{missing} is missing; add it{_hint(model, complaint['loc'])}"
    text = rule(complaint).replace("--set KEY=", f"--set {key}=")
    if "error" in context:
        return text if text.startswith(key) else f"{key}: {text}"
    if kind == "union_tag_not_found":
        return f"{key}.kind is missing; write kind: grid or kind: coverage"
    return f"{key}{'.kind' if kind == 'union_tag_invalid' else ''} {text}{_quotes(kind, given)}{_hint(model, complaint['loc'])}"


def rule(complaint: Any) -> str:
    """Returns what a value should be and what was given instead, without its key."""
    kind, given, context = complaint["type"], complaint["input"], complaint.get("ctx", {})
    if "error" in context:
        return str(context["error"])
    if kind == "union_tag_invalid":
        return f"should be {context['expected_tags'].replace(', ', ' or ')}, got {shown(context['tag'])}"
    if given is None:
        return "has no value; write one here or give it with --set KEY=VALUE"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        message = "should be a section with keys below it"
    elif kind == "string_pattern_mismatch":
        message = "has characters or a length that are not allowed"
    else:
        message = complaint["msg"].partition(" after validation")[0].partition(", unable to parse")[0]
        message = "should" + message.partition("should")[2] if "should" in message else message
    return f"{message}, got {shown(given)}"


def _quotes(kind: str, given: object) -> str:
    return "; put it in quotes" if kind == "string_type" and isinstance(given, int | float) else ""


def shown(value: object) -> str:
    """Returns a value as a person would write it in YAML, cut to a readable length."""
    text = {"True": "true", "False": "false", "None": "nothing"}.get(repr(value), repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def _section(model: type[BaseModel], path: KeyPath) -> Any:
    """Returns the model class or field that pydantic's path leads to, as far as it can be followed."""
    here: Any = model
    info: Any = None
    for element in path:
        fields = getattr(here, "model_fields", None)
        if fields is None or element not in fields:
            here = _member(here, info, element)
            continue
        info = fields[element]
        here = info.annotation
    return here, info


def _member(here: Any, info: Any, element: str | int) -> Any:
    """Returns what stands behind a mapping key, a sequence index or a union's tag."""
    for candidate in getattr(here, "__args__", ()):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            kind = candidate.model_fields.get("kind")
            if kind is None or element in get_args(kind.annotation):
                return candidate
    return here


def _siblings(model: type[BaseModel], path: KeyPath) -> list[str]:
    here, _ = _section(model, path)
    return list(getattr(here, "model_fields", {}))


def _hint(model: type[BaseModel], path: KeyPath) -> str:
    """Returns the first sentence of the field's documentation, in brackets."""
    _, info = _section(model, path)
    description = getattr(info, "description", None)
    if not description:
        return ""
    sentence = description.replace("\n", " ").split(". ")[0].strip().rstrip(".")
    return f" ({sentence.replace('`', '')})"
