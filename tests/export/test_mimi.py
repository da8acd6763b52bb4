"""The codec's layers: frame by frame equals all at once, and inactive slots keep their state."""

from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from folders import TINY
from torch import Tensor, nn

from pplex.export import weights
from pplex.export.checkpoint import open_checkpoint
from pplex.export.mimi import (
    Carry,
    CausalConv,
    CodecTransformer,
    MimiDecoder,
    MimiEncoder,
    RepeatStartConv,
    TransposedConv,
)
from pplex.runtime.config import ModelConfig
from pplex.runtime.graphs import Conv, downsample, graph_specs, upsample

SLOTS = 2
FRAMES = 6
TOLERANCE = 1e-5
State = dict[str, Tensor]
Stack = Callable[[Tensor, Carry], Tensor]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: the tiny layers are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder() -> MimiEncoder:
    checkpoint = open_checkpoint(TINY / "checkpoint")
    module = weights.load("mimi_encode", checkpoint)
    assert isinstance(module, MimiEncoder)
    return module


@pytest.fixture(scope="module")
def decoder() -> MimiDecoder:
    checkpoint = open_checkpoint(TINY / "checkpoint")
    module = weights.load("mimi_decode", checkpoint)
    assert isinstance(module, MimiDecoder)
    return module


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    checkpoint = open_checkpoint(TINY / "checkpoint")
    return checkpoint.config


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def new_state(convs: Iterable[Conv], slots: int = SLOTS) -> State:
    """Zeros in every convolution's tail and overlap, and the position."""
    tails = {
        conv.key: torch.zeros(slots, *(int(dim) for dim in conv.tail_shape[1:])) for conv in convs if conv.tail_shape
    }
    return {"position": torch.zeros(slots, dtype=torch.int64), **tails}


def convs_of(module: nn.Module) -> list[Conv]:
    return [layer.conv for layer in module.modules() if isinstance(layer, CausalConv | TransposedConv)]


def call(stack: Stack, x: Tensor, state: State, active: Tensor | None = None) -> tuple[Tensor, State]:
    """One call's output and the state it leaves; the position counts calls."""
    active = torch.ones(len(x), dtype=torch.bool) if active is None else active
    carry = Carry(state, active)
    y = stack(x, carry)
    carry.leave("position", state["position"] + 1)
    return y, carry.present


def check_streaming(stack: Stack, x: Tensor, state: State, frame_lengths: list[int]) -> None:
    """Compare output and final state of x [B, channels, L] at once with those of its pieces."""
    assert sum(frame_lengths) == x.shape[-1]
    whole, whole_state = call(stack, x, state)
    pieces = []
    for piece in x.split(frame_lengths, dim=-1):
        y, state = call(stack, piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=0, atol=TOLERANCE)
    assert state.keys() == whole_state.keys()
    for name in state.keys() - {"position"}:
        torch.testing.assert_close(state[name], whole_state[name], rtol=0, atol=TOLERANCE, msg=name)
    assert whole.std() > 100 * TOLERANCE


@pytest.mark.parametrize("hops", [[1] * 2 * FRAMES, [2] * FRAMES, [1, 5, 2, 4]])
def test_seanet_encoder_in_pieces_equals_all_at_once(
    encoder: MimiEncoder, config: ModelConfig, random: torch.Generator, hops: list[int]
) -> None:
    pcm = 0.1 * torch.randn(SLOTS, 1, 2 * FRAMES * config.mimi.hop, generator=random)
    state = new_state(convs_of(encoder.seanet))
    check_streaming(encoder.seanet, pcm, state, [n * config.mimi.hop for n in hops])


@pytest.mark.parametrize("steps", [[1] * 2 * FRAMES, [2] * FRAMES, [1, 5, 2, 4]])
def test_seanet_decoder_in_pieces_equals_all_at_once(
    decoder: MimiDecoder, config: ModelConfig, random: torch.Generator, steps: list[int]
) -> None:
    latent = torch.randn(SLOTS, config.mimi.dim, 2 * FRAMES, generator=random)
    check_streaming(decoder.seanet, latent, new_state(convs_of(decoder.seanet)), steps)


@pytest.mark.parametrize("steps", [[2] * FRAMES, [2, 6, 4]])
def test_downsampling_in_pieces_equals_all_at_once(
    encoder: MimiEncoder, config: ModelConfig, random: torch.Generator, steps: list[int]
) -> None:
    x = 3 + torch.randn(SLOTS, config.mimi.dim, 2 * FRAMES, generator=random)  # far from zero, the other possible start
    check_streaming(encoder.downsample, x, new_state([downsample(config.mimi)]), steps)


@pytest.mark.parametrize("steps", [[1] * FRAMES, [1, 3, 2]])
def test_upsampling_in_pieces_equals_all_at_once(
    decoder: MimiDecoder, config: ModelConfig, random: torch.Generator, steps: list[int]
) -> None:
    x = torch.randn(SLOTS, config.mimi.dim, FRAMES, generator=random)
    check_streaming(decoder.upsample, x, new_state([upsample(config.mimi)]), steps)


CONVS = [
    Conv("c", 2, 3, kernel=7),
    Conv("c", 2, 3, kernel=3),
    Conv("c", 2, 3, kernel=8, stride=4),
    Conv("c", 2, 3, kernel=16, stride=8),
    Conv("c", 2, 3, kernel=5, stride=2, bias=False),
]
TRANSPOSED = [
    Conv("c", 2, 3, kernel=8, stride=4, transposed=True),
    Conv("c", 3, 3, kernel=4, stride=2, transposed=True, depthwise=True, bias=False),
    Conv("c", 2, 3, kernel=5, stride=3, transposed=True),
]


def random_layer(kind: type[CausalConv] | type[TransposedConv], conv: Conv, random: torch.Generator) -> nn.Module:
    layer = kind(conv).requires_grad_(False)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    return layer


@pytest.mark.parametrize("conv", CONVS, ids=lambda conv: f"k{conv.kernel}s{conv.stride}")
def test_causal_convolution_equals_one_with_left_padding(conv: Conv, random: torch.Generator) -> None:
    layer = random_layer(CausalConv, conv, random)
    x = torch.randn(SLOTS, conv.inputs, 12 * conv.stride, generator=random)
    y, _ = call(layer, x, new_state([conv]))
    padded = F.pad(x, (conv.kernel - conv.stride, 0))
    torch.testing.assert_close(y, F.conv1d(padded, layer.weight, layer.bias, conv.stride), rtol=0, atol=TOLERANCE)
    check_streaming(layer, x, new_state([conv]), [conv.stride * n for n in (1, 4, 1, 2, 3, 1)])


def test_downsampling_starts_with_its_first_sample_repeated(random: torch.Generator) -> None:
    conv = Conv("c", 2, 3, kernel=4, stride=2, bias=False)
    layer = random_layer(RepeatStartConv, conv, random)
    x = torch.randn(SLOTS, conv.inputs, 12, generator=random)
    padded = F.pad(x, (conv.kernel - conv.stride, 0), mode="replicate")
    y, state = call(layer, x, new_state([conv]))
    torch.testing.assert_close(y, F.conv1d(padded, layer.weight, None, conv.stride), rtol=0, atol=TOLERANCE)
    state["position"][0] = 0  # one slot restarts, the other one continues
    again, _ = call(layer, x, state)
    torch.testing.assert_close(again[0], y[0], rtol=0, atol=TOLERANCE)
    assert (again[1, :, 0] - y[1, :, 0]).abs().max() > 0.1


@pytest.mark.parametrize("conv", TRANSPOSED, ids=lambda conv: f"k{conv.kernel}s{conv.stride}")
def test_transposed_convolution_equals_one_trimmed_on_the_right(conv: Conv, random: torch.Generator) -> None:
    layer = random_layer(TransposedConv, conv, random)
    x = torch.randn(SLOTS, conv.inputs, 12, generator=random)
    y, _ = call(layer, x, new_state([conv]))
    groups = conv.inputs if conv.depthwise else 1
    whole = F.conv_transpose1d(x, layer.weight, layer.bias, conv.stride, groups=groups)
    torch.testing.assert_close(y, whole[..., : 12 * conv.stride], rtol=0, atol=TOLERANCE)
    check_streaming(layer, x, new_state([conv]), [1, 4, 1, 2, 3, 1])


def rings_of(transformer: CodecTransformer, slots: int = SLOTS) -> tuple[Tensor, ...]:
    stack = transformer.stack
    return (torch.zeros(slots, stack.heads, stack.capacity, stack.head_dim),) * (2 * stack.layers)


@pytest.mark.parametrize("steps", [[1] * 22, [2] * 11, [3, 1, 8, 10]])
def test_transformer_in_pieces_equals_all_at_once_until_its_ring_is_full(
    encoder: MimiEncoder, random: torch.Generator, steps: list[int]
) -> None:
    """Once the ring is full, the reference's window depends on the number of steps per call."""
    transformer = encoder.transformer
    assert sum(steps) < transformer.stack.capacity
    x = torch.randn(SLOTS, transformer.stack.dim, sum(steps), generator=random)
    whole, whole_rings = transformer(x, torch.zeros(SLOTS, dtype=torch.int64), rings_of(transformer))
    position, rings, pieces = 0, list(rings_of(transformer)), []
    for piece in x.split(steps, dim=-1):
        y, rings = transformer(piece, torch.full((SLOTS,), position), tuple(rings))
        pieces.append(y)
        position += piece.shape[-1]
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=0, atol=TOLERANCE)
    for ring, expected in zip(rings, whole_rings, strict=True):
        torch.testing.assert_close(ring, expected, rtol=0, atol=TOLERANCE)


def initial(graph: str, config: ModelConfig) -> tuple[Tensor, ...]:
    """A graph's state for SLOTS new slots, in the spec's order."""
    shape_of = [(SLOTS, *(int(dim) for dim in state.shape[1:])) for state in graph_specs(config)[graph].state]
    dtypes = [getattr(torch, state.dtype) for state in graph_specs(config)[graph].state]
    return tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in zip(shape_of, dtypes, strict=True))


@pytest.mark.parametrize("graph", ["mimi_encode", "mimi_decode"])
def test_slots_at_different_frames_are_independent(
    encoder: MimiEncoder, decoder: MimiDecoder, config: ModelConfig, random: torch.Generator, graph: str
) -> None:
    """Slot 1 starts five frames late and then skips every third one; both pass the end of the ring."""
    module = {"mimi_encode": encoder, "mimi_decode": decoder}[graph]
    names = [state.name for state in graph_specs(config)[graph].state]
    rings = {state.name for state in graph_specs(config)[graph].state if state.ring}

    def inputs(frames: int) -> Tensor:
        if graph == "mimi_encode":
            return 0.1 * torch.randn(frames, 1, config.frame_size, generator=random)
        return torch.randint(0, config.audio_card, (frames, 8), generator=random)

    frames = inputs(30)
    state, alone = initial(graph, config), []
    for frame in frames:
        y, *state = module(frame.expand(SLOTS, *frame.shape), torch.ones(SLOTS, dtype=torch.bool), *state)
        alone.append(y[1])

    state, got = initial(graph, config), []
    for step in range(30):
        active = step >= 5 and step % 3 != 0
        x = torch.stack([frames[(7 * step) % 30], frames[len(got)] if active else inputs(1)[0]])
        y, *after = module(x, torch.tensor([True, active]), *state)
        for name, old, new in zip(names, state, after, strict=True):
            if not active and name not in rings:
                assert torch.equal(old[1], new[1]), name
        state = tuple(after)
        if active:
            got.append(y[1])
    assert len(got) > config.mimi.transformer.capacity // 2
    torch.testing.assert_close(torch.stack(got), torch.stack(alone[: len(got)]), rtol=0, atol=TOLERANCE)
