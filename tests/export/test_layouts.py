"""Every layout of docs/checkpoints.md opens, or is refused with the words there."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import write_adapter
from folders import TINY
from layouts import (
    by_step,
    copied,
    edit_lm,
    halved,
    int8,
    read_config,
    remove_voices,
    rename_lm,
    shard,
    weights_of,
    write_config,
)
from safetensors.torch import load_file, save_file

from pplex.export import weights
from pplex.export.checkpoint import CONFIG_FILE, LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE, VOICES_FILE, open_checkpoint
from pplex.export.finite import check_finite
from pplex.export.layout import CONSOLIDATED_FILE, INDEX_FILE, Q8_FILE
from pplex.runtime.config import MOSHI, PERSONAPLEX
from pplex.runtime.errors import PplexError

DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"
Change = Callable[[Path], object]


def documented() -> dict[str, str]:
    """What happens with each layout, by its name in the table."""
    table = DOCS.read_text().partition("## Every layout")[2].partition("\n## ")[0]
    rows = [line.strip("|").split(" | ", 1) for line in table.splitlines() if line.startswith("| ")]
    return {name.strip(): what.strip() for name, what in rows if name.strip() != "layout"}


def without(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def configured(**changes: Any) -> Change:
    """Change keys of config.json."""
    return lambda folder: write_config(folder, {**read_config(folder), **changes})


def sized(**changes: Any) -> Change:
    """Change sizes of the language model."""

    def change(folder: Path) -> None:
        data = read_config(folder)
        write_config(folder, {**data, "lm": {**data["lm"], **changes}})

    return change


def flat(**changes: Any) -> Change:
    """Kyutai's form of config.json. It has no sizes of the codec, and a tiny codec needs them: so they stay in `mimi`."""
    return lambda folder: write_config(folder, flat_config(folder, **changes))


def flat_config(folder: Path, **changes: Any) -> dict[str, Any]:
    data = read_config(folder)
    return {**data["lm"], "mimi": data["mimi"], "dep_q": 8, "lora": False, "quantize": False, **changes}


def moshi(folder: Path) -> None:
    rename_lm(folder, LM_FILE, halved(weights_of(folder)))
    remove_voices(folder)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def stored(name: str, *forms: Callable[..., Any]) -> Change:
    """The language model's tensors in other forms, in a file with this name."""

    def change(folder: Path) -> None:
        tensors = weights_of(folder)
        for form in forms:
            tensors = form(tensors)
        rename_lm(folder, name, tensors)

    return change


def lm(**tensors: torch.Tensor | None) -> Change:
    return lambda folder: edit_lm(folder, {key.replace("__", "."): tensor for key, tensor in tensors.items()})


def index(change: Callable[[dict[str, str]], object]) -> Change:
    def edit(folder: Path) -> None:
        data = shard(folder)
        change(data["weight_map"])
        (folder / INDEX_FILE).write_text(json.dumps(data))

    return edit


def twice_in_the_index(folder: Path) -> None:
    shard(folder)
    path = folder / INDEX_FILE
    path.write_text(path.read_text().replace('"weight_map": {', '"weight_map": {"text_emb.weight": "x.safetensors", '))


def twice_in_shards(folder: Path) -> None:
    placed = shard(folder)["weight_map"]
    first, second = (folder / f"model-0000{i}-of-00003.safetensors" for i in (1, 2))
    tensors = {**load_file(second), "text_emb.weight": load_file(first)["text_emb.weight"]}
    assert placed["text_emb.weight"] == first.name
    save_file(tensors, second)


def renamed(folder: Path) -> None:
    names = {"moshi_name": "moshi.safetensors", "mimi_name": "mimi.safetensors", "tokenizer_name": "text.model"}
    for old, new in zip((LM_FILE, MIMI_FILE, TEXT_TOKENIZER_FILE), names.values(), strict=True):
        (folder / old).rename(folder / new)
    flat(**names)(folder)


def voices_in_a_folder(folder: Path) -> None:
    (folder / VOICES_FILE).unlink()  # the same voices are in a folder


def with_adapter(folder: Path) -> None:
    tensors = {"text_linear.lora_A.weight": torch.ones(2, 32), "text_linear.lora_B.weight": torch.ones(400, 2)}
    write_adapter(folder.parent / "lora.safetensors", tensors, {"lora_rank": 2, "lora_scaling": 2.0})


def adapter_alone(folder: Path) -> None:
    (folder / LM_FILE).rename(folder / "lora.safetensors")


def missing_shard(folder: Path) -> None:
    shard(folder)
    without("model-00002-of-00003.safetensors")(folder)


def missing_step(folder: Path) -> None:
    tensors = by_step(weights_of(folder))
    tensors.pop("depformer.layers.0.self_attn.in_projs.3.weight")
    rename_lm(folder, CONSOLIDATED_FILE, tensors)


def bare(folder: Path) -> None:
    """A config.json of sizes only: without the file the sizes would be the released ones."""
    data = read_config(folder)
    write_config(folder, {"lm": data["lm"], "mimi": data["mimi"]})


INT8 = torch.zeros(400, 32, dtype=torch.int8)
OFF = {
    "conditioners": {}, "fuser": {"sum": [], "cross": [], "cross_attention_pos_emb": False}, "extra_heads_num_heads": 0,
    "extra_heads_dim": 6, "demux_second_stream": False, "text_card_out": None, "kv_repeat": 1, "norm_emb": False,
    "depformer_low_rank_embeddings": None, "cross_attention": False, "lm_gen_config": {"temp": 0.8}, "model_type": "moshi",
    "model_id": {"sig": "a", "epoch": 1}, "tts_config": {}, "depformer_dim_feedforward": None, "lora": None,
}  # fmt: skip
CASES: dict[str, Change] = {
    "PersonaPlex's files": lambda folder: None,
    "PersonaPlex's files without `config.json`": bare,
    "PersonaPlex's files without `voices.tgz`": remove_voices,
    "voices in a folder": voices_in_a_folder,
    "Moshi's files: 8 depth sets, no voices, no `config.json`": both(moshi, bare),
    "Moshi's files with Kyutai's flat `config.json`": both(moshi, flat()),
    "a flat `config.json` that names its files": renamed,
    "a flat `config.json` with other parts switched off": both(moshi, flat(**OFF)),
    "shards with `model.safetensors.index.json`": shard,
    "`consolidated.safetensors` of moshi-finetune": stored(CONSOLIDATED_FILE, by_step),
    "`model.q8.safetensors`: int8 with scales, each depth step alone": both(
        stored(Q8_FILE, by_step, int8), flat(quantize=True, moshi_name=Q8_FILE)
    ),
    "int8 with scales, all depth steps in one matrix": stored(Q8_FILE, int8),
    "float16 or float32 weights": stored(
        LM_FILE, lambda t: {k: v.to(torch.float16 if "emb" in k else torch.float32) for k, v in t.items()}
    ),
    "a LoRA adapter beside the base": with_adapter,
    "`lora: true` in `config.json`": configured(lora=True, lora_rank=128),
    "an unmerged LoRA in the weights": lm(
        text_linear__lora_A__weight=torch.ones(2, 32), text_linear__lora_B__weight=torch.ones(400, 2)
    ),
    "an adapter alone": adapter_alone,
    "`quantize: true`, but no int8 weights": configured(quantize=True),
    "integers without scales": lm(text_linear__weight=INT8),
    "a scale of another shape": lm(text_linear__weight=INT8, text_linear__weight_scb=torch.ones(401)),
    "8-bit floating point weights": lm(text_linear__weight=INT8.to(torch.float8_e4m3fn)),
    "weights that MLX quantized": lm(text_linear__scales=torch.ones(400, 1), text_linear__biases=torch.ones(400, 1)),
    "a pointer of Git LFS": lambda folder: (folder / MIMI_FILE).write_text(
        "version https://git-lfs.github.com/spec/v1\n"
    ),
    "weights of a fine-tune alone": without(MIMI_FILE, TEXT_TOKENIZER_FILE),
    "weights for another library": lambda folder: (folder / LM_FILE).rename(folder / "moshi.gguf"),
    "a pickle": lambda folder: (folder / LM_FILE).rename(folder / "pytorch_model.bin"),
    "a missing shard": missing_shard,
    "a tensor in two shards": twice_in_shards,
    "an index that names another shard": index(
        lambda placed: placed.update({"text_emb.weight": "model-00002-of-00003.safetensors"})
    ),
    "an index that names a tensor twice": twice_in_the_index,
    "an index that leads out of the folder": index(lambda placed: placed.update(x="../other.safetensors")),
    "other sizes without `config.json`": without(CONFIG_FILE),
    "a depth step is missing": missing_step,
    "tensors of conditions": lm(condition_provider__conditioners__description__embed__weight=torch.ones(1)),
    "tensors of extra heads": lm(extra_heads__0__weight=torch.ones(6, 32)),
    "`conditioners` in `config.json`": flat(conditioners={"description": {"type": "lut"}}),
    "`fuser` in `config.json`": flat(fuser={"sum": ["description"], "cross": []}),
    "`extra_heads_num_heads` in `config.json`": flat(extra_heads_num_heads=4),
    "`demux_second_stream` in `config.json`": flat(demux_second_stream=True),
    "`text_card_out` in `config.json`": flat(text_card_out=5),
    "`depformer_weights_per_step_schedule` in `config.json`": flat(depformer_weights_per_step_schedule=[0] * 8),
    "`depformer_low_rank_embeddings` in `config.json`": flat(depformer_low_rank_embeddings=128),
    "`tts_config` in `config.json`": flat(tts_config={"multistream": True}),
    "`stt_config` in `config.json`": flat(stt_config={"audio_delay_seconds": 0.5}),
    "`mimi_config_name` in `config.json`": flat(mimi_config_name="mimi.json"),
    "`model_type` Hibiki": flat(model_type="hibiki"),
    "`model_type` of speech to text": flat(model_type="stt"),
    "a configuration of transformers": flat(architectures=["MoshiForConditionalGeneration"]),
    "other delays": sized(delays=[0, *[16] * 16]),
    "other numbers of codebooks": flat(n_q=32),
    "an unknown key in `config.json`": flat(rope_scaling=2.0),
    "`lm` and flat keys in `config.json`": configured(dim=32),
    "a file on the hub in `config.json`": flat(moshi_name="hf://kyutai/moshiko-pytorch-bf16/model.safetensors"),
    "a file outside of the folder in `config.json`": flat(tokenizer_name="../tokenizer_spm_32k_3.model"),
    "a NaN or infinite weight": lm(out_norm__alpha=torch.tensor([[[*[1.0] * 31, float("inf")]]])),
}


def test_the_table_has_every_case_once() -> None:
    assert list(documented()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_layout_opens_or_is_refused_with_the_words_of_the_table(tmp_path: Path, name: str) -> None:
    folder, what = copied(tmp_path / "checkpoint"), documented()[name]
    CASES[name](folder)
    adapter = tmp_path / "lora.safetensors" if "--lora`" in what and what.startswith("built") else None
    if what.startswith("refused"):
        (words,) = re.findall(r"`(.*)`", what)
        with pytest.raises(PplexError) as caught:
            check_finite(open_checkpoint(folder, adapter).tensors.values(), lambda nbytes: None)
        assert " ".join(words.split()) in " ".join(str(caught.value).split())  # tables have other spaces
        return
    checkpoint = open_checkpoint(folder, adapter)
    check_finite(checkpoint.tensors.values(), lambda nbytes: None)
    assert checkpoint.config.family == (MOSHI if "as Moshi" in what else PERSONAPLEX)
    assert bool(checkpoint.layout.voices) == ("without voices" not in what and "as Moshi" not in what)
    _same_model(name, checkpoint)


def _same_model(name: str, checkpoint: Any) -> None:
    """The layout changes no weight, except by rounding to 8 bits and by an adapter."""
    original = open_checkpoint(TINY / "checkpoint")
    for graph in ("depth", "temporal"):
        expected = weights.load(graph, original).state_dict()
        found = weights.load(graph, checkpoint).state_dict()
        for key in expected if "LoRA" not in name else set(expected) - {"text_linear.weight"}:
            limit = (
                float(expected[key].abs().max()) / 127 if "int8" in name else 1e-7
            )  # float16 has fewer small numbers
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=limit)


def test_a_long_list_of_wrong_tensors_is_cut(tmp_path: Path) -> None:
    folder = copied(tmp_path / "checkpoint")
    (folder / CONFIG_FILE).unlink()
    with pytest.raises(PplexError) as caught:
        open_checkpoint(folder)
    assert 30 < len(str(caught.value).splitlines()) < 40 and re.search(r"\nand \d{3} more\n", str(caught.value))


def test_the_first_of_several_weights_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    folder = copied(tmp_path / "checkpoint")
    save_file(weights_of(folder), folder / CONSOLIDATED_FILE)
    save_file(weights_of(folder), folder / Q8_FILE)
    layout = open_checkpoint(folder).layout
    assert layout.weights_name == LM_FILE and layout.unused == (CONSOLIDATED_FILE, Q8_FILE)
