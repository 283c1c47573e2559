"""The README card that travels with an exported autoencoder: what it is, how to load it, what to watch out for."""

import yaml

from prolu_tune.export.source import TrainedSae, is_hub_name

METRICS: dict[str, tuple[str, str]] = {
    "l0": ("L0", "active latents per token"),
    "l1": ("L1", "sum of a token's activations"),
    "sqrt_l1": ("sqrt L1", "sum of the roots of a token's activations"),
    "mse": ("MSE", "squared error per dimension, in the normalised space"),
    "fvu": ("FVU", "fraction of variance unexplained"),
    "ce_degradation": ("CE degradation", "rise of the model's loss with the reconstruction spliced in, nats per token"),
    "ce_loss_score": ("CE loss score", "share of the loss between zeroing the hook and leaving it alone that is recovered"),
    "frac_alive": ("alive", "share of latents that fired in the evaluation"),
    "frac_negative_bias": ("negative biases", "share of encoder biases below 0"),
    "relative_norm": ("relative norm", "norm of the reconstruction over the norm of the input"),
}


def readme(trained: TrainedSae, *, format_name: str, folder: str, normalized_inputs: bool = False) -> str:
    """Returns the card as Markdown with the hub's front matter.

    Args:
        trained: What was exported.
        format_name: One of `formats.FORMATS`.
        folder: Name of the folder, for the loading lines.
        normalized_inputs: Whether the folder expects tokens that were rescaled before.
    """
    config = trained.config
    lines = [
        "---",
        yaml.safe_dump(_front_matter(trained, format_name), sort_keys=False).strip(),
        "---",
        "",
        f"# Sparse autoencoder: {trained.label}",
        "",
        f"{trained.sae.d_sae:,} latents on `{config.activations.hook_name}` ({trained.sae.d_in} wide) of "
        f"`{trained.model_name}`, trained on {_tokens(trained):,} tokens of `{trained.dataset_name}` in sequences of "
        f"{config.activations.context_length}.",
        "",
        "```python",
        *_loading_lines(format_name, folder),
        "```",
        "",
        *_notes(trained, format_name, normalized_inputs),
        "",
        *_metric_table(trained),
        "",
        "Nonlinearity and penalty are those of [ProLU: A Nonlinearity for Sparse Autoencoders]"
        "(https://www.alignmentforum.org/posts/HEpufTdakGTTKgoYF/prolu-a-nonlinearity-for-sparse-autoencoders) (Taggart 2024). "
        "Trained and exported with prolu-tune.",
    ]
    return "\n".join(lines) + "\n"


def _front_matter(trained: TrainedSae, format_name: str) -> dict[str, object]:
    matter: dict[str, object] = {"tags": ["sparse-autoencoder", "mechanistic-interpretability", "prolu"]}
    if format_name == "saelens":
        matter["library_name"] = "saelens"
    if is_hub_name(trained.config.activations.model):
        matter["base_model"] = trained.config.activations.model
    return matter


def _loading_lines(format_name: str, folder: str) -> list[str]:
    if format_name == "saelens":
        return [
            "from sae_lens import SAE",
            f"sae = SAE.load_from_disk({folder!r})  # from the hub: SAE.from_pretrained('USER/REPO', {folder!r})",
            "acts = sae.encode(x)  # x: raw activations",
            "recon = sae.decode(acts)",
        ]
    if format_name == "dictionary_learning":
        return [
            "from dictionary_learning.utils import load_dictionary",
            f"sae, config = load_dictionary({folder!r}, device='cpu')",
            "acts = sae.encode(x)",
            "recon = sae.decode(acts)",
        ]
    return [
        "from prolu_tune import load_sae",
        f"sae = load_sae({folder!r})",
        "acts = sae.encode(x)  # x: raw activations",
        "recon = sae(x)  # as raw as x; sae.decode(acts) is in the normalised space",
    ]


def _notes(trained: TrainedSae, format_name: str, normalized_inputs: bool) -> list[str]:
    notes = []
    per_token = trained.config.sae.normalization == "per_token"
    if normalized_inputs:
        notes.append(
            "**Rescale first:** `x = x / x.norm(dim=-1, keepdim=True) * x.shape[-1] ** 0.5` for every token, and scale the "
            "reconstruction back by the same factor. The folder does not do it."
        )
    elif per_token:
        notes.append("Every token is rescaled to L2 norm sqrt(d_in) inside, and its reconstruction scaled back.")
    if per_token and format_name == "saelens":
        notes.append(
            "SAELens gives NaN for a token that is zero everywhere; no real token is. Call `encode` before each `decode`."
        )
    if trained.config.activations.compatibility_mode:
        notes.append(
            "Activations are those of TransformerLens with its processed weights (LayerNorm folded, writing weights centred), "
            "so that a residual stream that goes through LayerNorm has mean zero over its width."
        )
    if trained.config.sae.nonlinearity != "relu" and format_name != "prolu":
        notes.append("ProLU is JumpReLU with threshold `max(-b_enc, 0)`; that is how it stands in this folder.")
    return [f"- {note}" for note in notes]


def _metric_table(trained: TrainedSae) -> list[str]:
    rows = [
        f"| {label} | {trained.metrics[name]:.4g} | {meaning} |"
        for name, (label, meaning) in METRICS.items()
        if trained.metrics.get(name) is not None
    ]
    if not rows:
        return ["No held-out metrics were stored with this autoencoder."]
    return ["On held-out text:", "", "| | | |", "| --- | ---: | --- |", *rows]


def _tokens(trained: TrainedSae) -> int:
    tokens = trained.metrics.get("tokens")
    return int(tokens) if tokens else trained.config.training.num_tokens
