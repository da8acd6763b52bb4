"""The model card of a bundle on the hub, and the notice that its licence asks for: called by `export.push`.

Not legal advice; NOTICE has the sources.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pplex.measure.tables import markdown, readable
from pplex.runtime.bundle import Bundle, Voice, origin_text, parity_text
from pplex.runtime.gpus import ONNXRUNTIME
from pplex.runtime.precision import BUILT
from pplex.runtime.voice_checks import CONSENT


@dataclass(frozen=True)
class Licence:
    """A licence of released weights: its metadata on the hub, the text of the card, and the line of the file Notice."""

    metadata: Mapping[str, str]
    text: str
    notice: str | None = None


_NVIDIA_LINK = "https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license/"
_CC_BY_LINK = "https://creativecommons.org/licenses/by/4.0/"
NVIDIA = Licence(
    {"license": "other", "license_name": "nvidia-open-model-license", "license_link": _NVIDIA_LINK},
    f"The weights are under the [NVIDIA Open Model License]({_NVIDIA_LINK}). It asks for a copy of the licence and the file "
    "`Notice` beside the weights.",
    "Licensed by NVIDIA Corporation under the NVIDIA Open Model License",
)
CC_BY = Licence({"license": "cc-by-4.0"}, f"The weights are under [CC-BY-4.0]({_CC_BY_LINK}). Their author is Kyutai.")
_BY_PREFIX = {"nvidia/personaplex": NVIDIA, "kyutai/moshi": CC_BY}  # of the repository's name
_MIMI = f"Mimi, the codec, is by Kyutai, under [CC-BY-4.0]({_CC_BY_LINK})."
_QUANTIZED = {"int4", "int8", "float8_e4m3fn"}
_OF_ADAPTER = " The licence of the adapter applies too."
_CHANGED = "The weights were converted to other files and, where the table says so, to another precision."


def licence_of(manifest: Mapping[str, Any]) -> Licence:
    """The licence of the repository that a bundle was made from. Of an unknown one, only that it applies."""
    repo = manifest["checkpoint"]["repo"]
    known = next((licence for prefix, licence in _BY_PREFIX.items() if (repo or "").startswith(prefix)), None)
    if known:
        return known
    source = f"[{repo}](https://huggingface.co/{repo})" if repo else "the checkpoint that it was made from"
    metadata = {"license": "other", "license_name": "of-the-base-model"}
    return Licence(metadata, f"The licence of {source} applies. Read it before you use or share this bundle.")


def model_card(bundle: Bundle, repo: str) -> str:
    """README.md of the repository `repo` for a bundle: metadata, facts, figures, how to run it, and licences."""
    licence = licence_of(bundle.manifest)
    facts = markdown(("", ""), [*_facts(bundle)])
    return f"""---
{_metadata(bundle, licence)}
---

# {repo.rpartition("/")[2]}

A bundle of pplex-export: a full-duplex speech-to-speech model that listens while it speaks, and runs without PyTorch.

{facts}

{_figures(bundle.manifest["parity"])}
{_recorded(bundle)}
## Run it

```sh
hf download {repo} --local-dir bundle
pplex-export inspect bundle --verify
pplex-export run bundle --input-wav user.wav --output-wav agent.wav --output-text agent.json
pplex-export serve bundle
```

## Licence

{licence.text} {_CHANGED} {_MIMI}{_OF_ADAPTER if bundle.manifest["checkpoint"].get("lora") else ""}
"""


def recorded_voices(bundle: Bundle) -> list[str]:
    """The names of the voices that were added from recordings."""
    return [name for name, voice in bundle.voices.items() if not isinstance(voice, Voice)]


def _recorded(bundle: Bundle) -> str:
    """A section about the voices that were added from recordings, if there are any."""
    names = recorded_voices(bundle)
    return f"\n## Voices\n\nAdded from recordings: {', '.join(names)}. {CONSENT}\n" if names else ""


def _metadata(bundle: Bundle, licence: Licence) -> str:
    values: dict[str, Any] = {**licence.metadata, "library_name": "pplex-export", "pipeline_tag": "audio-to-audio"}
    if bundle.manifest["checkpoint"]["repo"]:
        values["base_model"] = bundle.manifest["checkpoint"]["repo"]
        if any(BUILT[name].weights in _QUANTIZED for name in bundle.precision.values()):
            values["base_model_relation"] = "quantized"
    kinds = sorted({entry["kind"] for entry in bundle.manifest["engines"].values()})
    values["tags"] = ["speech-to-speech", "full-duplex", *("onnx" if kind == ONNXRUNTIME else kind for kind in kinds)]
    return "\n".join(f"{name}: {json.dumps(value)}" for name, value in values.items())  # JSON is YAML


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest, capacity = bundle.manifest, bundle.config.temporal.capacity
    yield "made from", origin_text(manifest)
    yield "made by", manifest["made_by"]
    yield "precision", ", ".join(f"{graph} {name}" for graph, name in bundle.precision.items())
    yield "runs on", "; ".join(dict.fromkeys(_engine(entry) for entry in manifest["engines"].values()))
    yield "context", f"{capacity} steps of 80 ms, {0.08 * capacity:.0f} s"
    yield "voices", ", ".join(manifest["voices"]) or "none"
    yield "size", readable(sum(file["nbytes"] for file in manifest["files"].values()))


def _engine(entry: Mapping[str, Any]) -> str:
    if entry["kind"] == ONNXRUNTIME:
        return "ONNX Runtime, on processors and NVIDIA GPUs"
    return f"{entry['kind']} engines for {entry['gpu']} (sm_{entry['sm']}), up to {entry['slots']} conversations"


def _figures(parity: Mapping[str, Any]) -> str:
    """The result of the validation at the end of the build, and its figures."""
    text = f"Compared with its checkpoint, in float32: {' '.join(parity_text(parity).split())}."
    if not parity["checked"]:
        return text
    rows = [(name, f"{one['value']:.3g}", f"{one['limit']:.3g}") for name, one in parity["measures"].items()]
    return f"{text}\n\n{markdown(('measure', 'value', 'limit'), rows)}"
