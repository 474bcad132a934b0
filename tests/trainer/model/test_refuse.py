"""Models that cannot be trained on streams are refused at load, each by the name of what is in the way."""

from __future__ import annotations

from typing import Any

import pytest
import transformers
from tiny import decoder
from transformers import AutoModelForCausalLM

from pipeline.errors import UserError
from trainer.model.attention import use_streams
from trainer.model.refuse import check

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
MAMBA = {"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 1}
EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


LATENT = {"num_key_value_heads": 2, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "q_lora_rank": 16}
LATENT |= {"kv_lora_rank": 16, "head_dim": 16, "first_k_dense_replace": 2}


@pytest.mark.parametrize(
    ("kind", "options", "named"),
    [
        ("Gemma2", {}, "softcap"),
        ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "attention sinks"),
        ("Mistral", {"sliding_window": 64}, r"sliding window.*null.*\(sliding_window in config.json\)"),
        ("Llama", {"attention_dropout": 0.1}, r"attention dropout.*to 0 \(attention_dropout in config.json\)"),
        ("GPT2", {"attn_pdrop": 0.2}, r"attention dropout.*\(attn_pdrop in config.json\)"),
        ("Jamba", MAMBA, "layer 0 is not attention .JambaMambaMixer"),
        ("Qwen3Next", EXPERTS | {"layer_types": ["full_attention", "linear_attention"]}, "layer 1 is not attention"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "layer 0 is not attention"),
        ("Granite", {"logits_scaling": 2.0}, "scales or caps its logits"),
        ("DeepseekV3", LATENT, "2 heads of 48 of queries, 2 heads of 48 of keys, 2 heads of 32 of values"),
        ("Llama", {"head_dim": 288}, "2 heads of 288 of queries, 1 heads of 288 of keys.*up to 256"),
        ("StableLm", {}, "do not hand on to attention"),
        ("Mamba", {"num_hidden_layers": 2}, "does not use transformers' attention interface"),
    ],
)
def test_refused_by_name(kind: str, options: dict[str, Any], named: str) -> None:
    shape = SHAPE if kind != "Mamba" else {"vocab_size": 64, "hidden_size": 64}
    backbone = AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**(shape | options)))
    use_streams(backbone)
    with pytest.raises(UserError, match=named):
        check(backbone)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral", "Qwen2", "Olmo2", "SmolLM3"])
def test_decoders_that_are_taken(kind: str) -> None:
    config = getattr(transformers, f"{kind}Config")(**SHAPE, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    if kind == "Mistral":
        config.sliding_window = None
    backbone = AutoModelForCausalLM.from_config(config)
    use_streams(backbone)
    check(backbone)
    assert backbone.training


def longrope() -> transformers.PreTrainedModel:
    """A decoder whose rotary frequencies are others beyond 64 positions."""
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 16, "long_factor": [4.0] * 16}
    scaling |= {"original_max_position_embeddings": 64, "factor": 4.0}
    tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return AutoModelForCausalLM.from_config(transformers.LlamaConfig(**SHAPE, **tokens, rope_parameters=scaling))


def test_positions_of_one_conversation_do_not_change_another() -> None:
    backbone = longrope()
    use_streams(backbone)
    check(backbone, rows=64)
    with pytest.raises(UserError, match=r"a conversation of 65 rows.*longrope.*--max-rows"):
        check(backbone, rows=65)


def test_more_rows_than_the_model_has_positions() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2, n_positions=32, attn_pdrop=0.0)
    backbone = AutoModelForCausalLM.from_config(config)
    use_streams(backbone)
    check(backbone, rows=32)
    with pytest.raises(UserError, match="no position 32, and the longest conversation has 33 rows"):
        check(backbone, rows=33)


def test_layers_that_mix_cells_beside_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = decoder()
    layer = type(backbone.get_decoder().layers[0].mlp)
    plain = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: plain(self, x) + 0.1 * x.roll(1, 1))
    use_streams(backbone)
    with pytest.raises(UserError, match="mix cells"):
        check(backbone)


def test_without_cells_the_model_says_what_is_missing() -> None:
    backbone = decoder()
    use_streams(backbone)
    with pytest.raises(UserError, match="stream_cells"):
        backbone(input_ids=backbone.get_input_embeddings().weight[:1, 0].long()[None])
