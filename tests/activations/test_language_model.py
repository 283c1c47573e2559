import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prolu_tune.activations.language_model import LanguageModel
from prolu_tune.activations.model_info import describe_model
from prolu_tune.config.trial import ActivationConfig
from prolu_tune.errors import InputError

Make = Callable[..., ActivationConfig]


@pytest.fixture(scope="module")
def gpt2(gpt2_folder: Path) -> LanguageModel:
    return LanguageModel(
        ActivationConfig(model=str(gpt2_folder), hook_name="blocks.1.hook_resid_pre", context_length=16, lm_threads=1)
    )


@pytest.fixture(scope="module")
def llama(llama_folder: Path) -> LanguageModel:
    return LanguageModel(
        ActivationConfig(model=str(llama_folder), hook_name="blocks.2.hook_resid_pre", context_length=16, lm_threads=1)
    )


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 300, (4, 16), generator=torch.Generator().manual_seed(3))


def with_hook(model: LanguageModel, hook: str) -> LanguageModel:
    return LanguageModel(model.config.model_copy(update={"hook_name": hook}), info=model.info)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "hook",
    [
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_resid_pre",
        "blocks.2.hook_resid_post",
        "blocks.1.hook_mlp_out",
        "blocks.1.attn.hook_z",
    ],
)
def test_activations_are_those_of_run_with_cache(
    family: str, hook: str, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    model = with_hook(request.getfixturevalue(family), hook)
    _, cache = model.bridge.run_with_cache(tokens)
    expected = cache[hook].flatten(2)
    assert model.d_in == expected.shape[2]
    assert torch.equal(model.activations(tokens), expected)


def test_nothing_after_the_hook_is_computed(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    reached = []
    handle = gpt2.bridge.blocks[1].register_forward_hook(lambda *_: reached.append(1))
    before = gpt2.bridge.blocks[0].register_forward_hook(lambda *_: reached.append(0))
    gpt2.activations(tokens)
    handle.remove()
    before.remove()
    assert reached == [0]


def test_the_residual_stream_is_centred_in_compatibility_mode_only(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    raw = LanguageModel(gpt2.config.model_copy(update={"compatibility_mode": False}), info=gpt2.info)
    assert gpt2.activations(tokens).mean(-1).abs().max() < 1e-5
    assert raw.activations(tokens).mean(-1).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_losses_are_those_of_the_model_outside_transformerlens(
    family: str, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    from transformers import AutoModelForCausalLM

    model: LanguageModel = request.getfixturevalue(family)
    outside = AutoModelForCausalLM.from_pretrained(model.info.folder)
    with torch.no_grad():
        logits = outside(tokens).logits[:, :-1]
    per_token = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    losses = model.losses(tokens)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, per_token.sum(1).double(), rtol=1e-4, atol=1e-4)


def test_a_replacement_sees_the_hook_once_and_the_model_goes_on_with_it(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    seen: list[torch.Tensor] = []

    def double(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return 2 * x

    got = gpt2.losses(tokens, double)
    assert len(seen) == 1
    assert torch.equal(seen[0], gpt2.activations(tokens))
    block = gpt2.bridge.blocks[1]
    handle = block.register_forward_pre_hook(lambda _, args, kwargs: ((2 * args[0], *args[1:]), kwargs), with_kwargs=True)
    expected = gpt2.losses(tokens)
    handle.remove()
    assert torch.equal(got, expected)
    assert not torch.allclose(got, gpt2.losses(tokens))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("hook", "skips"),
    [
        ("blocks.2.hook_resid_pre", True),
        ("blocks.0.hook_resid_post", True),
        ("blocks.2.hook_resid_post", True),
        ("blocks.0.hook_resid_pre", False),
        ("blocks.1.hook_mlp_out", False),
    ],
)
def test_running_only_the_layers_after_the_hook_gives_the_bits_of_a_full_pass(
    family: str, hook: str, skips: bool, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    model = with_hook(request.getfixturevalue(family), hook)
    given = model.activations(tokens) * 0.7 + 0.1
    assert torch.equal(model.losses_from_hook(tokens, given), model.losses(tokens, lambda _: given))
    assert model.skips_to_hook is skips
    computed = []
    handle = model.bridge.blocks[0].mlp.register_forward_hook(lambda *_: computed.append(0))
    model.losses_from_hook(tokens, given)
    assert (not computed) is skips
    model.activations(tokens) if hook != "blocks.0.hook_resid_pre" else model.losses(tokens)
    handle.remove()
    assert computed  # and the model is whole again


def test_a_model_whose_end_reads_its_first_block_is_run_in_full(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    model = with_hook(gpt2, "blocks.2.hook_resid_pre")
    kept: list[torch.Tensor] = []
    model.bridge.blocks[0].register_forward_hook(lambda _m, _a, out: kept.append(out[0] if isinstance(out, tuple) else out))
    model.bridge.ln_final.register_forward_pre_hook(lambda _m, args: (args[0] + kept[-1], *args[1:]))
    given = model.activations(tokens)
    assert torch.equal(model.losses_from_hook(tokens, given), model.losses(tokens, lambda _: given))
    assert model.skips_to_hook is False


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"])
def test_losses_from_zeros_are_those_of_a_pass_for_each_row(
    family: str, hook: str, tokens: torch.Tensor, request: pytest.FixtureRequest
) -> None:
    model = with_hook(request.getfixturevalue(family), hook)
    expected = model.losses(tokens, torch.zeros_like)
    assert torch.allclose(model.losses_from_zeros(tokens), expected, rtol=1e-5)
    shorter = tokens[:, :9]
    assert torch.allclose(model.losses_from_zeros(shorter), model.losses(shorter, torch.zeros_like), rtol=1e-5)


def test_where_a_row_decides_more_than_its_hook_zeros_are_passed_for_each(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    model = with_hook(gpt2, "blocks.1.hook_resid_pre")
    model.losses_from_hook(tokens, torch.zeros(*tokens.shape, model.d_in))
    told = torch.randn(300, model.d_in, generator=torch.Generator().manual_seed(0))
    row: list[torch.Tensor] = []
    embed = model.bridge.embed
    embed.register_forward_pre_hook(lambda _m, args: row.append(args[0]))
    model.bridge.blocks[2].register_forward_pre_hook(lambda _m, args: (args[0] + told[row[-1]], *args[1:]))
    expected = model.losses(tokens, torch.zeros_like)
    assert torch.allclose(model.losses_from_zeros(tokens), expected, rtol=1e-5)


def test_a_model_that_scales_its_logits_is_not_taken_for_a_plain_product(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    model = with_hook(gpt2, "blocks.1.hook_resid_pre")
    model.bridge.unembed.register_forward_hook(lambda _m, _a, logits: 3 * torch.tanh(logits / 3))
    given = model.activations(tokens)
    assert torch.allclose(model.losses_from_hook(tokens, given), model.losses(tokens, lambda _: given), rtol=1e-6)


def test_tokens_are_counted(gpt2: LanguageModel, tokens: torch.Tensor) -> None:
    model = with_hook(gpt2, "blocks.1.hook_resid_pre")
    assert model.tokens_processed == 0
    model.activations(tokens)
    model.losses(tokens)
    assert model.tokens_processed == 2 * tokens.numel()


def test_the_number_of_threads_is_the_configured_one_whatever_happened_between(
    gpt2: LanguageModel, tokens: torch.Tensor
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    gpt2.activations(tokens)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_a_hook_that_the_model_lacks_is_refused_with_close_names(make_config: Make) -> None:
    with pytest.raises(InputError, match=r"'blocks.1.hook_resid_pro' is not a hook of .* did you mean blocks.1.hook_resid_pre"):
        LanguageModel(make_config(hook_name="blocks.1.hook_resid_pro"))


@pytest.mark.parametrize("hook", ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "embed.hook_in"])
def test_a_hook_without_one_vector_per_token_is_refused(make_config: Make, hook: str) -> None:
    with pytest.raises(InputError, match="not one vector per token"):
        LanguageModel(make_config(hook_name=hook))


def test_a_layer_beyond_the_last_and_a_context_beyond_the_longest_are_refused_without_loading(make_config: Make) -> None:
    with pytest.raises(InputError, match=r"has 3 layers, blocks\.0 to blocks\.2"):
        describe_model(make_config(hook_name="blocks.3.hook_resid_pre"))
    with pytest.raises(InputError, match="reads at most 64 tokens"):
        describe_model(make_config(context_length=65))


def test_a_model_is_described_without_its_weights(make_config: Make, llama_folder: Path) -> None:
    info = describe_model(make_config())
    assert (info.d_model, info.num_layers, info.vocab_size, info.max_context, info.bos_token_id) == (32, 3, 300, 64, 0)
    assert describe_model(make_config(model=str(llama_folder))).bos_token_id == 1


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere/model", "bad name!"])
def test_a_model_that_is_nowhere_is_refused(make_config: Make, name: str) -> None:
    with pytest.raises(InputError, match=r"activations\.model .* is not a folder"):
        describe_model(make_config(model=name))


def test_a_folder_without_safetensors_is_refused(make_config: Make, gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((gpt2_folder / "config.json").read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(InputError, match=r"holds no \*\.safetensors weights"):
        LanguageModel(make_config(model=str(tmp_path)))


def test_a_folder_whose_configuration_is_rubbish_is_refused(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json cannot be used"):
        describe_model(make_config(model=str(tmp_path)))


def test_a_revision_of_a_local_model_is_refused(make_config: Make) -> None:
    with pytest.raises(InputError, match="has no effect"):
        describe_model(make_config(model_revision="main"))


def test_a_gpu_where_there_is_none_is_refused(make_config: Make) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="torch finds none on this machine"):
        LanguageModel(make_config(), device="cuda")


def test_a_local_model_opens_no_connection_and_prints_nothing(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    import huggingface_hub.constants

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a connection was tried: {args}")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    model = LanguageModel(make_config())
    model.losses(torch.zeros(1, 16, dtype=torch.long))
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False
