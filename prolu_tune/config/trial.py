"""The configuration of one trial: a frozen tree of pydantic models, one docstring per field with its unit.

Defaults are the choices of the ProLU post (Taggart 2024) at full scale; every named alternative is a field.
`None` means: derived, see `resolve.py`.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prolu_tune.config.names import NONLINEARITIES, PENALTIES, architecture_name

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    """A section of the configuration: immutable, refuses unknown keys, documents its fields by docstrings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class SaeConfig(Frozen):
    """The autoencoder itself."""

    nonlinearity: str = "relu"
    """One of `config.names.NONLINEARITIES`."""
    penalty: str = "l1"
    """Sparsity penalty, one of `config.names.PENALTIES`."""
    d_sae: PositiveInt | None = None
    """Dictionary width in latents. None: `expansion_factor` times the width of the hook."""
    expansion_factor: PositiveInt | None = None
    """Latents per input dimension; 16 when neither this nor `d_sae` is given."""
    d_in: PositiveInt | None = None
    """Width of the hook. None: taken from the model; given, it must agree with the model."""
    normalization: Literal["per_token", "none"] = "per_token"
    """`per_token` rescales every activation vector to L2 norm sqrt(d_in) (Anthropic, February 2024)."""
    sqrt_l1_eps: PositiveFloat = 1e-6
    """Added under the root of the sqrt_l1 penalty while training, so that its gradient stays finite."""

    @field_validator("nonlinearity")
    @classmethod
    def _known_nonlinearity(cls, value: str) -> str:
        if value not in NONLINEARITIES:
            raise ValueError(f"{value!r} is not a nonlinearity; choose one of {', '.join(NONLINEARITIES)}")
        return value

    @field_validator("penalty")
    @classmethod
    def _known_penalty(cls, value: str) -> str:
        if value not in PENALTIES:
            raise ValueError(f"{value!r} is not a penalty; choose one of {', '.join(PENALTIES)}")
        return value

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.d_sae is not None and self.expansion_factor is not None:
            raise ValueError("d_sae and expansion_factor both set the dictionary's width; keep one of them")
        return self

    @property
    def architecture(self) -> str:
        """Nonlinearity and penalty, such as `prolu_ste+l1`."""
        return architecture_name(self.nonlinearity, self.penalty)


class TrainingConfig(Frozen):
    """Loss, optimiser and learning-rate schedule. Steps left at None scale with the length of the run."""

    l1_coefficient: NonNegativeFloat = 1.0
    """Weight of the penalty against the squared error summed over d_in (the post's form: 768 times its code's c)."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    num_tokens: PositiveInt = 402_653_184
    """Activations read from the stream, those consumed by resampling included (98,304 batches of 4,096)."""
    batch_size: PositiveInt = 4096
    """Activations per step."""
    adam_betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay of Adam's first and second moment."""
    adam_eps: PositiveFloat | None = None
    """Adam's epsilon. None: d_in * 1e-8, which makes the summed loss the same run as the post code's mean."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up, at the start and after each resampling. None: 2,000 at full length."""
    cooldown_start: Annotated[int, Field(ge=0)] | None = None
    """Step at which the linear cooldown starts. None: 75,000 at full length."""
    cooldown_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of cooldown. None: 20,000 at full length."""
    cooldown_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the learning rate left when the cooldown ends."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the matrix products; weights, gate and penalty stay float32. bfloat16 needs a GPU."""
    num_threads: PositiveInt = 1
    """CPU threads of a training process. Part of the numerics: another number gives other bits."""
    sparse_step: bool = True
    """Take the step that touches active latents only, where it is faster; same results to rounding. CPU."""
    log_every: PositiveInt | None = None
    """Steps between two rows of metrics. None: a hundredth of the run."""
    checkpoint_every_s: PositiveFloat = 60.0
    """Seconds between two checkpoints; when they are written does not change results."""


class ResamplingConfig(Frozen):
    """Anthropic resampling of dead latents. Steps left at None scale with the length of the run."""

    steps: tuple[PositiveInt, ...] | None = None
    """Training steps before which dead latents are resampled. None: 25,000 and 50,000 at full length. []: never."""
    window_steps: PositiveInt | None = None
    """Steps over which firings are counted before a resampling. None: 12,500 at full length."""
    dead_frequency: Share = 3e-6
    """A latent that fires in a smaller share of the window's activations is dead."""
    num_tokens: PositiveInt | None = None
    """Fresh activations read, and not trained on, at each resampling. None: 819,200 at full length."""
    max_candidate_norm: PositiveFloat | None = 2500.0
    """Activations with this raw norm or more are no candidates (GPT-2's position-0 outliers). None: no limit."""
    candidate_weight: Literal["squared_error", "squared_error_squared"] = "squared_error"
    """What the chance of an input to replace a dead latent is proportional to."""
    encoder_scale: PositiveFloat = 0.2
    """Norm of a new encoder column over the mean norm of the alive ones (experiments 1 and 2: 0.02; 3: 0.2)."""
    adam_second_moment: Literal["alive_mean", "zero"] = "alive_mean"
    """Adam's second moment at replaced entries; the first moment becomes 0."""


class ActivationConfig(Frozen):
    """Which activations: language model, hook, text and how the stream is cut. Shared by every trial of a sweep."""

    model: str = "embedded"
    """`embedded`, a Hugging Face name such as `gpt2`, or a folder in Hugging Face format."""
    model_revision: str | None = None
    """Git revision of a hub model. None: the newest."""
    hook_name: str = "blocks.2.hook_resid_pre"
    """TransformerLens name of the activation, such as `blocks.6.hook_resid_pre`."""
    compatibility_mode: bool = True
    """TransformerLens's processed weights: LayerNorm folded, writing weights centred (as the post's activations)."""
    dataset: str = "embedded"
    """`embedded`, a data set on the Hugging Face hub, or a file or folder of Parquet, JSON lines or text."""
    dataset_split: str = "train"
    """Split of a hub data set."""
    dataset_revision: str | None = None
    """Git revision of a hub data set. None: the newest."""
    column: str | None = None
    """Column with token ids or text. None: `input_ids`, `tokens` or `text`, whichever is there first."""
    context_length: Annotated[int, Field(ge=2)] = 128
    """Tokens per sequence; longer rows are cut into pieces of this length."""
    overwrite_bos: bool = True
    """Position 0 of every sequence becomes the tokenizer's BOS."""
    train_on_bos: bool = True
    """BOS positions belong to the stream."""
    train_range: tuple[Share, Share] = (0.0, 0.4)
    """Share of the rows that training reads."""
    eval_range: tuple[Share, Share] = (0.9, 0.95)
    """Share of the rows that evaluation reads; must not overlap train_range."""
    epochs: PositiveInt = 1
    """Passes over the training rows that are allowed."""
    chunk_tokens: Annotated[int, Field(ge=1024)] = 2**18
    """Activations per chunk, over which tokens are shuffled (the whole training split if that is smaller)."""
    seed: int = 0
    """Seed of the order of rows and tokens."""
    lm_batch_size: PositiveInt = 32
    """Sequences per pass of the language model. Part of the numerics."""
    lm_precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the language model's weights and products."""
    lm_threads: PositiveInt = 2
    """CPU threads of the language model's process. Part of the numerics."""
    cache_gb: PositiveFloat = 20.0
    """Disk that chunks may take on a node, in GB; the oldest are evicted and recomputed when needed."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("train_range", self.train_range), ("eval_range", self.eval_range)):
            if low >= high:
                raise ValueError(f"{name} must run from a lower to a higher share, got [{low}, {high}]")
        if self.train_range[0] < self.eval_range[1] and self.eval_range[0] < self.train_range[1]:
            raise ValueError(
                f"train_range {list(self.train_range)} and eval_range {list(self.eval_range)} overlap; "
                "evaluation rows must be held out"
            )
        return self


class EvaluationConfig(Frozen):
    """Held-out evaluation at the end of a trial."""

    num_tokens: PositiveInt = 819_200
    """Held-out tokens; the first rows of eval_range in a seeded order."""


class TrialConfig(Frozen):
    """One trial, complete: everything that its result depends on."""

    seed: int = 0
    """Seed of the initialisation and of the draws in resampling. The stream has its own (`activations.seed`)."""
    sae: SaeConfig = SaeConfig()
    """The autoencoder."""
    training: TrainingConfig = TrainingConfig()
    """Loss, optimiser, schedule."""
    resampling: ResamplingConfig = ResamplingConfig()
    """Dead latents."""
    activations: ActivationConfig = ActivationConfig()
    """Model, hook, data."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Held-out metrics."""
