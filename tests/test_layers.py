"""Layer groups: names, coverage, the traps of each architecture, ties, PEFT, and a self-check that can fail."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

from hf_early_ood.errors import ConfigurationError, UnsupportedModelError
from hf_early_ood.layers import LayerGroup, LayerGroups, check_layer_groups, find_layer_groups
from tests import families

BLOCKS = [f"block.{i}" for i in range(families.NUM_BLOCKS)]
SINGLE = ["embeddings", *BLOCKS, "head"]
DOUBLE = ["embeddings", *(f"{side}.{b}" for side in ("encoder", "decoder") for b in BLOCKS), "head"]
NAMES = {
    **dict.fromkeys(families.FAMILIES, SINGLE),
    **dict.fromkeys(("bart", "mbart", "t5"), DOUBLE),
    "albert": ["embeddings", "block.0", "head"],
}

# family, parameter, group: what a rule by order of registration alone would get wrong, or nearly so.
TRAPS = [
    ("deberta", "deberta.encoder.rel_embeddings.weight", "embeddings"),
    ("deberta-v2", "deberta.encoder.rel_embeddings.weight", "embeddings"),
    ("deberta-v2", "deberta.encoder.LayerNorm.weight", "embeddings"),
    ("deberta-v2", "deberta.encoder.conv.conv.weight", "block.0"),
    ("deberta-v2", "deberta.encoder.conv.LayerNorm.bias", "block.0"),
    ("mpnet", "mpnet.encoder.relative_attention_bias.weight", "embeddings"),
    ("bart", "model.encoder.layernorm_embedding.weight", "embeddings"),
    ("bart", "model.decoder.layernorm_embedding.weight", "embeddings"),
    ("bart", "model.decoder.embed_positions.weight", "embeddings"),
    ("bart", "model.decoder.embed_tokens.weight", "embeddings"),
    ("mbart", "model.encoder.layer_norm.weight", "encoder.block.2"),
    ("mbart", "model.decoder.layer_norm.weight", "head"),
    ("t5", "transformer.encoder.final_layer_norm.weight", "encoder.block.2"),
    ("t5", "transformer.decoder.final_layer_norm.weight", "head"),
    (
        "t5",
        "transformer.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "encoder.block.0",
    ),
    (
        "t5",
        "transformer.decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0",
    ),
    ("opt", "model.decoder.final_layer_norm.weight", "head"),
    ("opt", "model.decoder.embed_positions.weight", "embeddings"),
    ("bloom", "transformer.word_embeddings_layernorm.weight", "embeddings"),
    ("modernbert", "model.embeddings.norm.weight", "embeddings"),
    ("modernbert", "model.final_norm.weight", "head"),
    ("modernbert", "head.dense.weight", "head"),
    ("electra", "electra.embeddings_project.weight", "embeddings"),
    ("convbert", "convbert.embeddings_project.bias", "embeddings"),
    ("mobilebert", "mobilebert.embeddings.embedding_transformation.weight", "embeddings"),
    ("mobilebert", "mobilebert.encoder.layer.1.ffn.0.output.dense.weight", "block.1"),
    ("albert", "albert.encoder.embedding_hidden_mapping_in.weight", "embeddings"),
    ("albert", "albert.pooler.weight", "head"),
    ("bert", "bert.pooler.dense.weight", "head"),
    ("bert", "bert.embeddings.LayerNorm.weight", "embeddings"),
    ("roberta", "classifier.out_proj.weight", "head"),  # registered before the encoder
    ("canine", "canine.initial_char_encoder.layer.0.output.dense.weight", "embeddings"),
    ("canine", "canine.chars_to_molecules.conv.weight", "embeddings"),
    ("canine", "canine.final_char_encoder.layer.0.output.dense.weight", "head"),
    ("gpt2", "transformer.wpe.weight", "embeddings"),
    ("gpt2", "transformer.ln_f.weight", "head"),
    ("gpt_neox", "gpt_neox.embed_in.weight", "embeddings"),
    ("gpt_neox", "gpt_neox.final_layer_norm.bias", "head"),
    ("llama", "model.norm.weight", "head"),
    ("gemma2", "model.layers.1.pre_feedforward_layernorm.weight", "block.1"),
    ("funnel", "funnel.encoder.blocks.2.0.ffn.linear_1.weight", "block.2"),
    ("xlm", "transformer.attentions.1.q_lin.weight", "block.1"),
    ("xlm", "transformer.ffns.1.lin1.weight", "block.1"),
    ("xlm", "transformer.layer_norm2.1.weight", "block.1"),
    ("xlm", "transformer.layer_norm_emb.weight", "embeddings"),
    ("flaubert", "transformer.ffns.2.lin1.weight", "block.2"),
]


def assert_covers(groups: LayerGroups, model: nn.Module, expected: list[nn.Parameter] | None = None) -> None:
    """Each expected parameter is in exactly one group, as itself and under the model's name for it."""
    names = dict(model.named_parameters())
    held = [(name, p) for group in groups for name, p in group.parameters.items()]
    assert all(names[name] is p for name, p in held)
    assert len({id(p) for _, p in held}) == len(held)
    assert {id(p) for _, p in held} == {id(p) for p in (list(model.parameters()) if expected is None else expected)}


# Every family.


def test_names(family: str) -> None:
    assert list(find_layer_groups(families.build(family)).names) == NAMES[family]


def test_every_parameter_is_in_exactly_one_group(family: str) -> None:
    model = families.build(family)
    groups = find_layer_groups(model)
    assert_covers(groups, model)
    assert sum(group.num_parameters for group in groups) == sum(p.numel() for p in model.parameters())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        assert any(p is parameter for p in groups[groups.group_of(name)].parameters.values())


def test_blocks_have_the_same_size_give_or_take_what_only_one_has(family: str) -> None:
    groups = find_layer_groups(families.build(family))
    for side in ("encoder.", "decoder.", ""):
        sizes = [group.num_parameters for group in groups if group.name.startswith(f"{side}block.")]
        assert not sizes or max(sizes) < 1.5 * min(sizes)


def test_self_check_passes(family: str) -> None:
    model = families.build(family)
    check_layer_groups(model, families.inputs(family, model, batch=2))


@pytest.mark.parametrize(("family_", "parameter", "group"), TRAPS, ids=lambda value: str(value))
def test_trap(family_: str, parameter: str, group: str) -> None:
    assert find_layer_groups(families.build(family_)).group_of(parameter) == group


def test_no_weight_is_read_or_copied() -> None:
    with torch.device("meta"):
        model = transformers.BertForSequenceClassification(transformers.BertConfig())
    groups = find_layer_groups(model)
    assert list(groups.names) == ["embeddings", *(f"block.{i}" for i in range(12)), "head"]
    assert groups["block.11"].num_parameters == 7_087_872
    assert_covers(groups, model)


# Further architectures that need an exception, or another shape of a known one.


def test_opt_with_projections() -> None:
    model = families.build("opt", word_embed_proj_dim=8, do_layer_norm_before=False)
    groups = find_layer_groups(model)
    assert groups.group_of("model.decoder.project_in.weight") == "embeddings"
    assert groups.group_of("model.decoder.project_out.weight") == "head"
    check_layer_groups(model, families.inputs("opt", model))


def test_bigbird_pegasus_calls_its_final_norms_embedding_norms() -> None:
    config = transformers.BigBirdPegasusConfig(
        vocab_size=100, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40,
        attention_type="original_full", eos_token_id=families.EOS, pad_token_id=families.PAD,
    )  # fmt: skip
    model = transformers.BigBirdPegasusForSequenceClassification(config)
    groups = find_layer_groups(model)
    assert groups.group_of("model.encoder.layernorm_embedding.weight") == "encoder.block.1"
    assert groups.group_of("model.decoder.layernorm_embedding.weight") == "head"
    check_layer_groups(model, families.inputs("bart", model))


def test_esm_calls_its_final_norm_an_embedding_norm() -> None:
    config = transformers.EsmConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, pad_token_id=families.PAD, mask_token_id=4,
    )  # fmt: skip
    model = transformers.EsmForSequenceClassification(config)
    assert find_layer_groups(model).group_of("esm.encoder.emb_layer_norm_after.weight") == "head"
    check_layer_groups(model, families.inputs("bert", model))


def test_funnel_decoder_is_a_stack_of_its_own_although_it_is_small() -> None:
    model = families.build("funnel", task="token_classification", block_sizes=[4, 4, 4], num_decoder_layers=2)
    names = find_layer_groups(model).names
    assert names[1] == "encoder.block.0"
    assert names[-4:] == ("encoder.block.11", "decoder.block.0", "decoder.block.1", "head")
    check_layer_groups(model, families.inputs("funnel", model))


@pytest.mark.parametrize(
    ("family_", "task"),
    [
        ("bert", "token_classification"),
        ("bert", "question_answering"),
        ("bert", "multiple_choice"),
        ("bert", "masked_lm"),
        ("bert", "encoder"),
        ("deberta-v2", "masked_lm"),
        ("gpt2", "causal_lm"),
        ("llama", "causal_lm"),
        ("llama", "encoder"),
        ("bart", "seq2seq_lm"),
        ("bart", "causal_lm"),
        ("t5", "seq2seq_lm"),
        ("t5", "encoder"),
        ("xlm", "masked_lm"),
    ],
)
def test_other_tasks(family_: str, task: str) -> None:
    model = families.build(family_, task=task)
    groups = find_layer_groups(model)
    assert_covers(groups, model)
    expected = SINGLE if (family_, task) == ("bart", "causal_lm") else NAMES[family_]  # BART's decoder alone
    assert list(groups.names) == [name for name in expected if name != "head" or "head" in groups]
    inputs = families.inputs(family_, model, batch=2)
    if (family_, task) == ("t5", "encoder"):
        inputs = {**inputs, "decoder_input_ids": inputs["input_ids"]}
    check_layer_groups(model, inputs)


def test_albert_says_that_its_layers_are_one() -> None:
    (note,) = find_layer_groups(families.build("albert")).notes
    assert "only one block: all of its 3 layers share it" in note


class Odd(nn.Module):
    """Each leftover is registered on the wrong side of the layers; what it is can only be told from its name."""

    BOTTOM = ("emb", "wte", "wpe", "rel_bias", "relative_bias", "position_bias", "shared")
    TOP = ("pooler", "project_out", "final_norm", "last_norm", "ln_f", "norm_f")

    def __init__(self) -> None:
        super().__init__()
        for name in self.TOP:
            self.add_module(name, nn.Linear(8, 8))
        self.first = nn.Linear(8, 8)
        self.tables = nn.ModuleList([nn.Embedding(99, 8), nn.Embedding(99, 8)])
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.last = nn.Linear(8, 8)
        self.outputs = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])
        for name in self.BOTTOM:
            self.add_module(name, nn.Linear(8, 8))


def test_names_and_then_order_decide_about_what_is_in_no_block() -> None:
    model = Odd()
    groups = find_layer_groups(model)
    assert groups.names == ("embeddings", "block.0", "block.1", "block.2", "block.3", "head")
    homes = {name: groups.group_of(f"{name}.weight") for name in (*Odd.TOP, "first", "last", *Odd.BOTTOM)}
    assert {name for name, home in homes.items() if home == "embeddings"} == {*Odd.BOTTOM, "first"}
    assert {name for name, home in homes.items() if home == "head"} == {*Odd.TOP, "last"}
    assert groups.group_of("tables.1.weight") == "embeddings"  # big, but no layers
    assert groups.group_of("outputs.1.weight") == "head"  # a list, but small
    assert_covers(groups, model)


# Ties.


def test_tied_output_layer_is_held_once_by_the_embeddings() -> None:
    model = families.build("gpt2", task="causal_lm")
    groups = find_layer_groups(model)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert list(groups["head"].parameters) == ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    assert groups.group_of("lm_head.weight") == groups.group_of("transformer.wte.weight") == "embeddings"
    (note,) = groups.notes
    assert "lm_head.weight = transformer.wte.weight" in note
    assert "'head' are held by 'embeddings'" in note


def test_a_model_whose_head_is_all_tied_says_that_it_has_none() -> None:
    groups = find_layer_groups(families.build("bart", task="seq2seq_lm"))
    assert "head" not in groups
    assert any("no 'head' group: the top group is 'decoder.block.2'" in note for note in groups.notes)


def test_user_decides_about_a_tied_parameter_by_any_of_its_names() -> None:
    groups = find_layer_groups(families.build("gpt2", task="causal_lm"), overrides={"lm_head": "head"})
    assert groups.group_of("transformer.wte.weight") == "head"


def test_a_layer_that_is_in_the_list_twice_is_held_by_the_lower_block() -> None:
    model = families.build("bert")
    model.bert.encoder.layer[2] = model.bert.encoder.layer[0]
    groups = find_layer_groups(model)
    assert groups.names == ("embeddings", "block.0", "block.1", "head")
    assert any("of 'block.2' are held by 'block.0'" in note for note in groups.notes)
    assert_covers(groups, model)
    check_layer_groups(model, families.inputs("bert", model))


# PEFT.


def lora(model: nn.Module, **settings: object) -> nn.Module:
    return get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, **settings))  # type: ignore[arg-type]


def test_lora_groups_hold_what_is_trainable_and_nothing_else() -> None:
    model = lora(families.build("bert"))
    groups = find_layer_groups(model)
    assert list(groups.names) == [*BLOCKS, "head"]
    assert_covers(groups, model, [p for p in model.parameters() if p.requires_grad])
    assert sorted(groups["head"].parameters) == [
        "base_model.model.classifier.modules_to_save.default.bias",
        "base_model.model.classifier.modules_to_save.default.weight",
    ]
    assert all(".encoder.layer.1." in name and "lora_" in name for name in groups["block.1"].parameters)
    assert any("PEFT model: the groups hold the 14 tensors" in note for note in groups.notes)
    check_layer_groups(model, families.inputs("bert", model))
    with pytest.raises(ConfigurationError, match="No layer group holds this parameter"):
        groups.group_of("base_model.model.bert.embeddings.word_embeddings.weight")


def test_lora_on_some_layers_drops_the_empty_blocks() -> None:
    model = lora(families.build("bert"), layers_to_transform=[2], modules_to_save=["pooler", "classifier"])
    groups = find_layer_groups(model)
    assert groups.names == ("block.2", "head")
    pooler = "base_model.model.bert.pooler.modules_to_save.default.dense.weight"
    assert groups.group_of(pooler) == "head"
    check_layer_groups(model, families.inputs("bert", model))


@pytest.mark.parametrize("saved", [["classifier"], ["classifier", "position_embeddings"]])
def test_lora_on_embeddings(saved: list[str]) -> None:
    model = lora(families.build("bert"), target_modules=["word_embeddings", "query"], modules_to_save=saved)
    groups = find_layer_groups(model)
    assert list(groups.names) == SINGLE
    assert any("lora_embedding_A" in name for name in groups["embeddings"].parameters)
    check_layer_groups(model, families.inputs("bert", model))


def test_lora_leaves_what_the_user_froze_or_thawed_as_it_is() -> None:
    model = lora(families.build("bert"))
    model.get_base_model().bert.pooler.requires_grad_(True)
    model.get_base_model().bert.encoder.layer[0].requires_grad_(False)
    groups = find_layer_groups(model)
    assert groups.names == ("block.1", "block.2", "head")
    assert groups.group_of("base_model.model.bert.pooler.dense.weight") == "head"


def test_prompt_tuning_enters_at_the_bottom() -> None:
    model = get_peft_model(families.build("bert"), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    groups = find_layer_groups(model)
    assert groups.names == ("embeddings", "head")
    check_layer_groups(model, families.inputs("bert", model))


def test_adapter_added_without_a_peft_wrapper() -> None:
    model = families.build("bert")
    model.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    groups = find_layer_groups(model)
    assert_covers(groups, model, [p for p in model.parameters() if p.requires_grad])


def test_merged_peft_model_is_a_plain_model() -> None:
    model = lora(families.build("bert")).merge_and_unload()
    groups = find_layer_groups(model)
    assert list(groups.names) == SINGLE
    assert_covers(groups, model)


def test_frozen_peft_model() -> None:
    model = lora(families.build("bert")).requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"no trainable parameter.*is_trainable=True"):
        find_layer_groups(model)


# Flags, wrappers, blocks=, overrides=.


def test_plain_groups_hold_everything_whatever_the_flags_and_trainable_restricts_them() -> None:
    model = families.build("bert")
    model.bert.embeddings.requires_grad_(False)
    model.bert.pooler.requires_grad_(False)
    groups = find_layer_groups(model)
    assert_covers(groups, model)
    trainable = groups.trainable()
    assert list(trainable.names) == SINGLE[1:]
    assert sorted(trainable["head"].parameters) == ["classifier.bias", "classifier.weight"]
    model.requires_grad_(False)
    with pytest.raises(ConfigurationError, match="no trainable parameter"):
        groups.trainable()


def test_model_inside_the_users_own_module() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(16, 3)  # before the encoder
            self.encoder = families.build("roberta", task="encoder")

        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            inputs.pop("labels", None)
            return self.classifier(self.encoder(**inputs).last_hidden_state[:, 0])

    model = Wrapper()
    groups = find_layer_groups(model)
    assert list(groups.names) == SINGLE
    assert groups.group_of("classifier.weight") == groups.group_of("encoder.pooler.dense.bias") == "head"
    tiny = families.build("roberta")
    check_layer_groups(model, families.inputs("roberta", tiny))


class Unknown(nn.Module):
    """Blocks in an nn.Sequential; a table that every block reads; a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.table = nn.Embedding(7, 4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.out = nn.Linear(4, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.table(ids) * self.scale))


def test_unknown_architecture_says_what_to_write_and_that_works() -> None:
    with pytest.raises(UnsupportedModelError, match=r'No list of blocks.*in Unknown.*blocks="layers"'):
        find_layer_groups(Unknown())
    model = Unknown()
    groups = find_layer_groups(model, blocks="layers")
    assert groups.names == ("embeddings", "block.0", "block.1", "head")
    assert groups.group_of("scale") == "embeddings"
    assert_covers(groups, model)
    check_layer_groups(model, {"ids": torch.tensor([1, 2])}, groups)
    with pytest.raises(UnsupportedModelError, match=r'blocks="path\.to\.the\.layers"'):
        find_layer_groups(nn.Linear(2, 2))


def test_blocks_by_hand_equal_blocks_found() -> None:
    for family_, blocks in [
        ("bert", "bert.encoder.layer"),
        ("t5", ["transformer.encoder.block", "transformer.decoder.block"]),
        ("xlm", [f"transformer.{n}" for n in ("attentions", "layer_norm1", "ffns", "layer_norm2")]),
    ]:
        model = families.build(family_)
        by_hand, found = find_layer_groups(model, blocks=blocks), find_layer_groups(model)
        assert [(g.name, list(g.parameters)) for g in by_hand] == [(g.name, list(g.parameters)) for g in found]
    model = lora(families.build("bert"))  # from the top of the base model
    assert find_layer_groups(model, blocks="bert.encoder.layer").names == find_layer_groups(model).names


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ("bert.encoder.layers", r"Got: 'bert\.encoder\.layers'.*Did you mean 'bert\.encoder\.layer'\?"),
        ("bert.pooler", "must name the list that holds the blocks"),
        ("", "must name the list that holds the blocks"),
        ([], "blocks= is empty"),
        (["bert.encoder.layer", "bert.encoder.layer"], "overlap"),
    ],
)
def test_wrong_blocks(blocks: str | list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        find_layer_groups(families.build("bert"), blocks=blocks)


def test_overrides_first_match_wins() -> None:
    model = families.build("bert")
    overrides = {r"pooler\.dense\.bias": "block.2", "pooler": "block.1", "token_type": "head"}
    groups = find_layer_groups(model, overrides=overrides)
    assert groups.group_of("bert.pooler.dense.bias") == "block.2"
    assert groups.group_of("bert.pooler.dense.weight") == "block.1"
    assert groups.group_of("bert.embeddings.token_type_embeddings.weight") == "head"
    assert_covers(groups, model)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"poller": "head"}, "matches no parameter.*Got: 'poller'"),
        ({"pooler": "head", r"pooler\.dense": "block.0"}, r"matches no parameter that an earlier one.*dense'"),
        ({"pooler": "block.3"}, r"unknown layer group.*Did you mean 'block\.\d'"),
        ({"pooler(": "head"}, r"not a regular expression.*Got: 'pooler\(' \("),
    ],
)
def test_wrong_overrides(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        find_layer_groups(families.build("bert"), overrides=overrides)


def test_a_model_without_parameters() -> None:
    with pytest.raises(UnsupportedModelError, match="ReLU has no parameters"):
        find_layer_groups(nn.ReLU())


# The self-check must fail on wrong groups, say why, and leave no trace.

WRONG = [
    # A table that every layer reads, taken for a part of the head.
    (
        "deberta",
        {"rel_embeddings": "head"},
        r"lowest trainable group is 'head', the frozen module deberta\.encoder\.layer\.0\.\S+ \(block\.0\).*"
        r"Got: deberta\.encoder\.rel_embeddings\.weight \(head\)\..*"
        r"overrides=\{r'\^deberta\\\.encoder\\\.rel_embeddings\\\.weight\$': 'block\.0'\}",
    ),
    ("deberta-v2", {"rel_embeddings": "head"}, r"deberta\.encoder\.LayerNorm \(embeddings\) and \d+ more depends"),
    ("mpnet", {"relative_attention_bias": "head"}, r"Got: mpnet\.encoder\.relative_attention_bias\.weight \(head\)"),
    ("bart", {r"encoder\.layernorm_embedding": "head"}, r"Got: model\.encoder\.layernorm_embedding\.\w+ \(head\)"),
    # A final norm taken for a part of the embeddings.
    (
        "opt",
        {r"decoder\.final_layer_norm": "embeddings"},
        r"group is 'block\.2', the frozen module model\.decoder\.final_layer_norm \(embeddings\) depends.*"
        r"overrides=\{r'\^model\\\.decoder\\\.final_layer_norm\\\.': 'block\.2'\}",
    ),
    # Blocks in the wrong order.
    ("bert", {r"layer\.0\.": "block.2", r"layer\.2\.": "block.0"}, r"the frozen module bert\.encoder\.layer\.1\."),
]


@pytest.mark.parametrize(("family_", "overrides", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_self_check_fails_on_wrong_groups(family_: str, overrides: dict[str, str], message: str) -> None:
    model = families.build(family_)
    groups = find_layer_groups(model, overrides=overrides)
    with pytest.raises(UnsupportedModelError, match=message):
        check_layer_groups(model, families.inputs(family_, model), groups)


def test_self_check_fails_when_a_stage_trains_nothing() -> None:
    model = families.build("bert")
    groups = find_layer_groups(model, overrides={"classifier": "block.2", "pooler": "block.2", "token_type": "head"})
    with pytest.raises(UnsupportedModelError, match="depend"):
        check_layer_groups(model, families.inputs("bert", model), groups)
    bare = families.build("bert", task="encoder")
    unused = nn.Module()
    unused.encoder, unused.head = bare, nn.Linear(2, 2)
    unused.forward = lambda **inputs: bare(**inputs).last_hidden_state  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModelError, match=r"Nothing would be trained.*'head'"):
        check_layer_groups(unused, families.inputs("bert", bare))


def test_self_check_names_enabled_input_gradients() -> None:
    model = families.build("bert")
    model.enable_input_require_grads()
    with pytest.raises(UnsupportedModelError, match="disable_input_require_grads"):
        check_layer_groups(model, families.inputs("bert", model))


def test_self_check_refuses_blocks_that_do_not_run() -> None:
    model = families.build("t5")
    model.encoder_only = True
    inputs = families.inputs("t5", model)
    encoder = model.transformer.encoder
    hidden = encoder(input_ids=inputs["input_ids"]).last_hidden_state.detach()
    inputs = {"encoder_outputs": (hidden,), "decoder_input_ids": inputs["input_ids"], **inputs}
    with pytest.raises(UnsupportedModelError, match=r"no module of encoder\.block\.0, encoder\.block\.1.* ran"):
        check_layer_groups(model, inputs)


@pytest.mark.parametrize("fails", [False, True])
def test_self_check_leaves_no_trace(fails: bool) -> None:
    model = families.build("bert").train()
    model.bert.encoder.layer[1].eval()
    model.bert.embeddings.requires_grad_(False)
    model.classifier(torch.zeros(1, 16)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    rng = torch.get_rng_state()
    inputs = families.inputs("bert", model)
    if fails:
        with pytest.raises(ValueError, match="to match target batch_size"):
            check_layer_groups(model, {**inputs, "labels": inputs["labels"][:2]})
    else:
        with torch.no_grad():
            check_layer_groups(model, inputs)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == {name: p.requires_grad for name, p in model.named_parameters()}
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert all(p.grad is grads[name] for name, p in model.named_parameters())
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_self_check_runs_in_eval_mode_and_gives_random_numbers_back() -> None:
    modes = []

    class Noisy(Unknown):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            modes.append(self.layers.training)
            return super().forward(ids) + torch.rand(())

    model = Noisy().train()
    rng = torch.get_rng_state()
    check_layer_groups(model, {"ids": torch.tensor([1, 2])}, find_layer_groups(model, blocks="layers"))
    assert modes == [False] * 4
    assert model.layers.training
    assert torch.equal(rng, torch.get_rng_state())


# The containers.


def test_groups_are_a_sequence_with_names() -> None:
    groups = find_layer_groups(families.build("bert"))
    assert len(groups) == 5
    assert groups["head"] is groups[-1]
    assert [group.name for group in groups[1:3]] == ["block.0", "block.1"]
    assert "block.1" in groups
    assert groups[0] in groups
    assert "block.9" not in groups
    assert repr(groups) == "LayerGroups(embeddings, block.0, block.1, block.2, head)"
    with pytest.raises(
        ConfigurationError, match=r"Unknown layer group\. Got: 'haed'\. Allowed: embeddings, .*, head\. .*'head'"
    ):
        groups["haed"]
    with pytest.raises(ConfigurationError, match="No layer group holds this parameter"):
        groups.group_of("nothing")


def test_groups_are_immutable() -> None:
    group = find_layer_groups(families.build("bert"))["head"]
    with pytest.raises(TypeError, match="does not support item assignment"):
        group.parameters["classifier.weight"] = nn.Parameter(torch.zeros(1))  # type: ignore[index]
    with pytest.raises(AttributeError, match="cannot assign to field"):
        group.name = "other"  # type: ignore[misc]


def test_groups_must_be_disjoint() -> None:
    weight = nn.Parameter(torch.zeros(2))
    one = LayerGroup("one", {"weight": weight})
    for other in (LayerGroup("one", {}), LayerGroup("two", {"same": weight})):
        with pytest.raises(ConfigurationError, match="must not share a name or a parameter"):
            LayerGroups([one, other])


def test_table() -> None:
    lines = find_layer_groups(families.build("bert")).table().splitlines()
    assert lines[0].split() == ["group", "tensors", "parameters", "share", "first", "module"]
    assert lines[1].split() == ["embeddings", "5", "2,304", "24.8%", "bert.embeddings.word_embeddings"]
    assert lines[-2].split() == ["head", "4", "323", "3.5%", "bert.pooler.dense"]
    assert lines[-1].split() == ["total", "57", "9,299", "100.0%"]
    assert len({line.index("%") for line in lines[1:]}) == 1
