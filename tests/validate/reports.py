"""Reports to render: a realistic one of a quantized bundle, with failures and gaps, and a hostile one."""

import math
from dataclasses import replace

import numpy as np

from pplex.validate.report.schema import Grade, Measure, Plot, Report, Section, Series, Table, Tolerance

HOSTILE = "<img src=x onerror=alert(1)>"
LAYERS = tuple(
    f"layers.{i}.{part}" for i in range(32) for part in ("norm1", "in_proj", "attention", "out_proj", "norm2", "gating")
)
EXACT = Tolerance(1e-3, "float32 sums of another order reach 1e-5; a wrong weight gives more than 1e-2")
SHARE = Tolerance(0.95, "below this, the text a listener reads is another one", least=True)


def realistic(seed: int = 7) -> Report:
    """Int8 against float32: every kind of plot, a long table, a large failure, a small one, and one without a value."""
    rng = np.random.default_rng(seed)
    return Report(
        made_by="pplex-export 0.1.0",
        bundle={
            "name": "personaplex-7b-int8",
            "checkpoint": "nvidia/personaplex-7b-v1 at 3f8a2c1",
            "precision": {"mimi_encode": "fp32", "temporal": "int8", "depth": "int8", "mimi_decode": "fp32"},
            "engines": {
                "mimi_encode": "ONNX Runtime 1.31 (CPU)",
                "temporal": "TensorRT-RTX 1.7.1 (H200, sm_90)",
                "depth": "TensorRT-RTX 1.7.1 (H200, sm_90)",
                "mimi_decode": "ONNX Runtime 1.31 (CPU)",
            },
        },
        reference={"name": "our torch modules in float32", "checkpoint": "nvidia/personaplex-7b-v1 at 3f8a2c1"},
        settings={
            "frames": 3000,
            "recordings": ["greeting", "interruption", "silence"],
            "seed": 42,
            "temperature": 0.8,
        },
        machine={"gpu": "NVIDIA H200", "driver": "580.65", "cpu": "16 cores", "python": "3.12.4"},
        sections=(_graphs(rng), _drift(rng), _conversation(rng), _speed()),
    )


def clean() -> Report:
    """The same report without failures: tolerances are widened."""

    def kept(measure: Measure) -> Measure:
        if measure.tolerance is None:
            return measure
        value = 0.5 if measure.value is None else measure.value
        return replace(measure, value=value, tolerance=replace(measure.tolerance, limit=value))

    report = realistic()
    sections = (replace(section, measures=tuple(map(kept, section.measures))) for section in report.sections)
    return replace(report, sections=tuple(sections))


def hostile(text: str = HOSTILE) -> Report:
    """A report with one of everything, and `text` as every text."""
    tolerance = Tolerance(1.0, text)
    measures = (Measure(text, 2.0, text, text, tolerance, text), Measure(f"{text} ", None, text, text))
    series = (Series(text, (0.0, 1.0), (1.0, 2.0)), Series("", (), ()))
    plots = tuple(
        Plot(text, kind, text, text, series, ticks=(text, text), marks=((0.5, text),))
        for kind in ("line", "bar", "spans")
    )
    info = {text: text, "name": text, "precision": {text: text}, "engines": {text: {text: [text]}}}
    section = Section(text, text, text, measures, (Table(text, (text,), ((text,), (None,))),), plots, (text,))
    return Report(text, info, info, info, info, (section,), Grade(text, text, (text, text), heard=False))


def graded() -> Report:
    """The realistic report with a grade."""
    reasons = ("divergence of audio 0.09 nats", "health.looped_text 0.4 share")
    return replace(realistic(), grade=Grade("audible", "expect other words", reasons, heard=True))


def _graphs(rng: np.random.Generator) -> Section:
    errors = np.abs(rng.normal(size=len(LAYERS))) * 1e-4
    errors[LAYERS.index("layers.1.gating")] = 0.95
    position = tuple(float(i) for i in range(len(LAYERS)))
    rows = tuple((name, float(errors[i]), int(i % 7), "int8") for i, name in enumerate(LAYERS))
    return Section(
        "graphs",
        "Graphs",
        "Does every graph compute what the reference computes, layer by layer?",
        (
            Measure(
                "graphs.temporal.layer_error",
                0.95,
                "",
                "Largest difference of a layer's output from the reference's, as a share of its range.",
                EXACT,
                "layers.1.gating",
            ),
            Measure(
                "graphs.depth.layer_error",
                1.0004e-3,
                "",
                "The same of the depth transformer.",
                EXACT,
                "layers.5.in_proj",
            ),
            Measure("graphs.mimi_encode.error", 4.1e-7, "", "Largest difference of the latent.", EXACT, "frame 12"),
            Measure(
                "graphs.mimi_decode.error", np.float32(2.5e-6), "of full scale", "Largest difference of PCM.", EXACT
            ),
            Measure("graphs.temporal.ring_error", None, "", "Largest difference of the ring's entries.", EXACT),
            Measure("graphs.nodes", 1234.0, "nodes", "Nodes of the four graphs."),
        ),
        (Table("Layers of temporal", ("layer", "error", "worst step", "weights"), rows),),
        (
            Plot(
                "Error by layer of temporal",
                "bar",
                "layer",
                "share of the range",
                (Series("temporal", position, tuple(map(float, errors))),),
                True,
                LAYERS,
            ),
        ),
        ("The ring of temporal could not be read: the engine keeps it to itself.",),
    )


def _drift(rng: np.random.Generator) -> Section:
    frames = tuple(float(i) for i in range(3000))
    text, audio = (np.abs(rng.normal(size=3000)) * scale for scale in (2e-4, 1e-3))
    audio[1234] = 0.4
    text[:3] = (0.0, math.nan, math.inf)
    books = tuple(float(k) for k in range(8))
    return Section(
        "drift",
        "Drift",
        "Does it stay with the reference over a long conversation?",
        (
            Measure(
                "drift.text_kl", 0.00021, "nats", "Mean Kullback-Leibler divergence of the text's distribution.", EXACT
            ),
            Measure("drift.same_text", 0.9999999, "", "Share of steps with the same most probable text token.", SHARE),
            Measure("drift.same_audio", 0.9412, "", "Share of steps with the same audio token.", SHARE, "codebook 7"),
            Measure("drift.worst_frame", 1234.0, "", "Frame of the largest divergence."),
        ),
        (
            Table(
                "Share of same tokens by codebook", ("codebook", "same"), tuple((k, 1 - 0.008 * k) for k in range(8))
            ),
            Table(
                "Not finite", ("what", "value"), (("overflow", math.inf), ("missing", None), ("no number", math.nan))
            ),
        ),
        (
            Plot(
                "Divergence from the reference by frame",
                "line",
                "frame",
                "nats",
                (Series("text", frames, tuple(map(float, text))), Series("audio", frames, tuple(map(float, audio)))),
                True,
                marks=((150.0, "prompt ends"), (160.0, "user speaks"), (1234.0, "worst"), (2990.0, "interruption")),
            ),
            Plot(
                "Same token by codebook",
                "bar",
                "codebook",
                "share",
                tuple(
                    Series(name, books, tuple(1 - s * k for k in range(8)))
                    for name, s in (("user", 0.004), ("agent", 0.008))
                ),
                ticks=tuple(f"k{k}" for k in range(8)),
            ),
        ),
    )


def _conversation(rng: np.random.Generator) -> Section:
    def spans(name: str, offset: float) -> Series:
        starts = tuple(float(offset + 6 * i + rng.uniform(0, 1)) for i in range(10))
        return Series(name, starts, tuple(start + float(rng.uniform(1, 3)) for start in starts))

    return Section(
        "conversation",
        "Conversation",
        "Does it take turns as the reference does?",
        (
            Measure(
                "conversation.overlap",
                0.31,
                "s",
                "Longest stretch in which both speak.",
                Tolerance(1.5, "the reference's own longest with other seeds is 1.2 s"),
                "12.4 s",
            ),
            Measure("conversation.reply", 0.42, "s", "Median pause before the agent replies."),
        ),
        (),
        (
            Plot(
                "Who speaks when",
                "spans",
                "seconds",
                "",
                (spans("user", 0), spans("agent, reference", 3), spans("agent, bundle", 3.2), Series("nobody", (), ())),
                marks=((30.0, "interruption"),),
            ),
        ),
        ("Sampled with the reference's own noise, so that both could say the same.",),
    )


def _speed() -> Section:
    return Section(
        "speed",
        "Speed",
        "How long does a frame take?",
        (
            Measure("speed.frame_ms", 21.37, "ms", "Median of a whole frame, of the available 80 ms."),
            Measure("speed.p99_ms", None, "ms", "99th percentile."),
        ),
        notes=("Measured while validating: for figures to quote, use pplex-export bench frame.",),
    )


def other() -> Report:
    """The validation of another precision with other settings: one section and one measure removed, one of each added."""
    report = realistic(seed=8)
    graphs, drift, conversation, _ = report.sections
    better = {"graphs.temporal.layer_error": 8e-4, "drift.same_audio": 0.98, "drift.text_kl": 0.0013}
    measures = (replace(measure, value=better.get(measure.name, measure.value)) for measure in drift.measures)
    more = Measure("memory.session", 812.5, "MB", "Memory of a session.", Tolerance(1000.0, "what the GPU has left"))
    return replace(
        report,
        bundle={**report.bundle, "name": "personaplex-7b-fp8", "precision": {"temporal": "fp8", "depth": "int8"}},
        settings={**report.settings, "frames": 300},
        sections=(
            replace(graphs, measures=tuple(replace(m, value=better.get(m.name, m.value)) for m in graphs.measures[:4])),
            replace(drift, measures=tuple(measures)),
            conversation,
            Section("memory", "Memory", "How much memory does it take?", (more,)),
        ),
    )
