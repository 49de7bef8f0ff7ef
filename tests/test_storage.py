"""The sparse file: codings by hand to the bit, every model there and back to the bit, every damage refused."""

import bz2
import copy
import math
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pruninglab as lab
from pruninglab import storage
from pruninglab.storage import codec, fileformat

MODELS: dict[str, Callable[[], Any]] = {
    "lenet300": lambda: lab.models.lenet300((1, 28, 28), 10),
    "lenet5": lambda: lab.models.lenet5((1, 28, 28), 10),
    "alexnet": lambda: lab.models.alexnet((3, 32, 32), 10, width=0.1),
    "vgg16": lambda: lab.models.vgg16((3, 32, 32), 10, width=0.1),
    "resnet20": lambda: lab.models.resnet20((3, 32, 32), 10),
    "resnet50": lambda: lab.models.resnet50((3, 32, 32), 10, width=0.1),
}
LENET = {"conv1": (110, 3), "conv2": (750, 3), "fc1": (1370, 2), "fc2": (348, 3)}  # weights kept, bits of a value


def seeded(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return MODELS[name]()


def sparse(model: nn.Module, sparsity: float) -> Any:
    lab.keep_top({n: torch.rand_like(w) for n, w in lab.prunable(model).items()}, sparsity).apply_(
        {n: w.data for n, w in lab.prunable(model).items()}
    )
    return model


def small() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 4))
    return sparse(net, 0.8)


def quantized(clustered: bool = False) -> Any:
    """LeNet-5 with the counts and bits that the ADMM paper's tables 5 and 6 give, at positions drawn at random."""
    model, draw = seeded("lenet5"), torch.Generator().manual_seed(0)
    for layer, (kept, bits) in LENET.items():
        weight = model.get_submodule(layer).weight
        scores = torch.randn(weight.flatten(1).shape, generator=draw).abs()
        if clustered:  # trained nets keep some rows and columns and lose others
            scores *= (
                torch.randn(len(scores), 1, generator=draw).exp() * torch.randn(scores[0].shape, generator=draw).exp()
            )
        levels = torch.linspace(-1, 1, 2**bits)[torch.randint(2**bits, (kept,), generator=draw)]
        flat = torch.zeros(weight.numel())
        flat[scores.flatten().topk(kept).indices] = levels
        weight.data.copy_(flat.view(weight.shape))
    return model


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Names in order, dtypes, shapes and bits; -0 is +0."""
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and (fileformat.patterns(a[n]) == fileformat.patterns(b[n])).all()
        for n in a
    )


# Codings by hand


def matrix(*rows: str) -> codec.Mask:
    return np.array([[c == "1" for c in row] for row in rows])


@pytest.mark.parametrize(
    ("coding", "rows", "expected"),
    [
        ("bitmap", ("0100", "0011"), "01000011"),
        # the gaps are 1, 4 and 0; a filler of three zeros comes before the second
        ("gap:2", ("0100", "0011"), "01110100"),
        ("gap:3", ("0100", "0011"), "001100000"),
        ("gap:1", ("0100", "0011"), "10111100"),
        # low bits 1, 0, 0, then higher parts 0, 2, 0 in unary
        ("rice:1", ("0100", "0011"), "10010011"),
        ("rice:0", ("0100", "0011"), "01000011"),
        # 1 and 2 in the rows, then columns 1, 2, 3
        ("csr:2", ("0100", "0011"), "0110011011"),
        ("rows.bitmap", ("000", "101"), "01101"),
        ("cols.bitmap", ("000", "101"), "1010011"),
        ("rows.cols.bitmap", ("0000", "0101", "0001"), "01101011101"),
        ("rows.cols.turn.bitmap", ("0000", "0101", "0001"), "01101011011"),
        ("turn.gap:2", ("0100", "0011"), "101001"),  # by columns: 00 10 01 01
        ("rows.turn.rice:1", ("00000", "01001"), "0110101"),
    ],
)
def test_each_coding_by_hand(coding, rows, expected):
    mask = matrix(*rows)
    bits = codec.encode_positions(mask, coding)
    assert "".join(map(str, bits)) == expected
    packed = codec.pack(bits)
    assert packed == int(expected.ljust(-(-len(expected) // 8) * 8, "0"), 2).to_bytes(-(-len(expected) // 8), "big")
    assert (
        codec.decode_positions(codec.unpack(packed), (len(rows), len(rows[0])), int(mask.sum()), coding) == mask
    ).all()


def test_numbers_are_packed_with_the_highest_bit_first():
    assert codec.pack(codec.to_bits(np.array([5, 2, 7]), 3)) == bytes([0b10101011, 0b10000000])
    assert codec.from_bits(codec.unpack(bytes([0b10101011, 0b10000000]), 9), 3, 3).tolist() == [5, 2, 7]


def test_values_and_their_code_book_by_hand():
    values = np.array([[0, 7, 0, 3], [3, 0, 0, 9]], "<u4")
    coded = codec.encode(values, book=True)
    assert (coded.positions, coded.values, coded.kept) == ("bitmap", "book:3", 4)  # 8 bits; gaps would be 2 bytes
    assert coded.streams[0] == bytes([0b01011001])
    assert coded.streams[1] == bytes([0b01_00_00_10])
    assert coded.streams[2] == bytes([3, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0])
    assert (coded.index_bits, coded.data_bits) == (8, 4 * 2 + 3 * 32)
    assert (codec.decode(coded, (2, 4), np.dtype("<u4")) == values).all()


def test_one_distinct_value_takes_no_codes():
    coded = codec.encode(np.array([[5, 0, 5, 5, 0, 0, 5, 5]], "<u4"))
    assert (coded.values, coded.data_bits, coded.streams[1]) == ("book:1", 32, b"")


def test_highest_bytes_apart_by_hand():
    values = np.array([0x3C_01_02_03, 0xBC_04_05_06, 0x3C_07_08_09, 0x3D_0A_0B_0C], "<u4")
    assert codec.value_costs(values) == {"raw": 128, "top:3": 4 * (2 + 24) + 24, "book:4": 4 * 2 + 128}
    codes, book = codec.encode_values(values, "top:3")
    assert codes == bytes([0b00_10_00_01, 3, 6, 9, 12, 2, 5, 8, 11, 1, 4, 7, 10])
    assert book == bytes([0x3C, 0x3D, 0xBC])
    assert (codec.decode_values(codes, book, 4, values.dtype, "top:3") == values).all()


masks = st.builds(
    lambda shape, density, seed, lines: _pattern(shape, density, seed, lines),
    st.tuples(st.integers(1, 12), st.one_of(st.integers(1, 40), st.integers(300, 700))),
    st.sampled_from([0.0, 0.002, 0.02, 0.1, 0.4, 0.6, 0.9, 1.0]),
    st.integers(0, 10**6),
    st.booleans(),
)


def _pattern(shape: tuple[int, int], density: float, seed: int, lines: bool) -> codec.Mask:
    draw = np.random.default_rng(seed)
    mask = draw.random(shape) < density
    if lines:  # whole rows and columns dead
        mask &= (draw.random((shape[0], 1)) < 0.5) & (draw.random(shape[1]) < 0.5)
    return mask


@given(masks)
def test_every_coding_comes_back_and_costs_what_it_says(mask):
    kept = int(mask.sum())
    every = codec.costs(mask)
    assert "bitmap" in every
    for coding, expected in every.items():
        bits = codec.encode_positions(mask, coding)
        assert len(bits) == expected
        assert (codec.decode_positions(codec.unpack(codec.pack(bits)), mask.shape, kept, coding) == mask).all()


@given(masks, st.integers(1, 9))
def test_every_width_comes_back(mask, width):
    for name in ("gap", "rice"):
        bits = codec.unpack(codec.pack(codec.encode_positions(mask, f"{name}:{width}")))
        assert (codec.decode_positions(bits, mask.shape, int(mask.sum()), f"{name}:{width}") == mask).all()


@given(masks)
def test_the_searched_widths_are_the_best(mask):
    every = codec.costs(mask)
    for name in ("gap", "rice"):
        searched = [bits for coding, bits in every.items() if coding.partition(":")[0] == name]
        all_widths = [len(codec.encode_positions(mask, f"{name}:{w}")) for w in range(1, 14)]
        assert not searched or searched[0] <= min(all_widths)


@given(masks, st.sampled_from([1, 2, 300, 10**6]), st.sampled_from([None, False, True]))
def test_the_cheapest_is_chosen_and_comes_back(mask, distinct, book):
    draw = np.random.default_rng(mask.size)
    values = np.where(mask, draw.integers(1, distinct + 1, mask.shape), 0).astype("<u4")
    coded = codec.encode(values, book)
    assert (codec.decode(coded, values.shape, values.dtype) == values).all()
    total = sum(map(len, coded.streams))
    assert total == -(-coded.index_bits // 8) + -(-coded.data_bits // 8)
    for held, positions in ((values.reshape(-1), 0), (values[mask], min(codec.costs(mask).values()))):
        for name, bits in codec.value_costs(held, book).items():
            stream, shared = codec.encode_values(held, name)
            assert len(stream) + len(shared) == -(-bits // 8)
            assert total <= -(-bits // 8) + -(-positions // 8)
            assert (codec.decode_values(stream, shared, len(held), held.dtype, name) == held).all()


def test_which_coding_is_cheapest_where():
    def chosen(mask: codec.Mask) -> str:
        return codec.encode(np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0).astype("<u4")).positions

    def drawn(density: float) -> codec.Mask:
        return np.random.default_rng(0).random((200, 300)) < density

    def block(mask: codec.Mask) -> codec.Mask:
        whole = np.zeros((400, 600), bool)
        whole[::2, ::2] = mask
        return whole

    assert chosen(np.ones((20, 30), bool)) == "dense"
    assert chosen(drawn(0.6)) == "bitmap"
    assert chosen(drawn(0.01)).endswith("rice:6")  # 2^6 is 1 / 0.01 times ln 2, nearly
    assert chosen(block(drawn(0.6))) == "rows.cols.bitmap"
    assert chosen(block(drawn(0.1))).startswith("rows.cols.")
    every_seventh = np.zeros((100, 70), bool)
    every_seventh[:, ::7] = True
    assert chosen(every_seventh) == "cols.bitmap"
    assert chosen(np.arange(7000).reshape(100, 70) % 3 == 0).endswith("gap:2")  # equal gaps need no unary part


def test_positions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 positions instead of 2"):
        codec.decode_positions(codec.unpack(b"\x40"), (1, 8), 2, "bitmap")
    with pytest.raises(IndexError):
        codec.decode_positions(codec.to_bits(np.array([6, 6]), 3), (1, 8), 2, "gap:3")
    with pytest.raises(ValueError, match="a column lies outside"):
        codec.decode_positions(codec.to_bits(np.array([1, 0, 3]), 2), (2, 3), 1, "csr:2")


# Models there and back


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back_to_the_bit(name, tmp_path):
    for sparsity in (0.0, 0.5, 0.99, 0.999):
        model = sparse(seeded(name), sparsity)
        sizes = storage.save(model, tmp_path / "m.sparse")
        assert sizes["rounded"] == 0
        assert same(storage.load(tmp_path / "m.sparse"), model.state_dict())
        other = storage.load(tmp_path / "m.sparse", seeded(name, seed=1))
        assert same(other.state_dict(), model.state_dict())
        assert sizes["sparse_bytes"] == (tmp_path / "m.sparse").stat().st_size


@pytest.mark.parametrize("entropy", codec.ENTROPY)
def test_entropy_coding_comes_back_and_never_adds(entropy, tmp_path):
    model = quantized(clustered=True)
    plain = storage.save(model, tmp_path / "plain")
    squeezed = storage.save(model, tmp_path / "squeezed", entropy=entropy)
    assert squeezed["payload_bytes"] <= plain["payload_bytes"]
    assert same(storage.load(tmp_path / "squeezed"), model.state_dict())
    constant = {"w": torch.arange(2.0).repeat_interleave(3000).view(60, 100)}  # a bitmap that is worth compressing
    sizes = storage.save(constant, tmp_path / "constant", values="fp32", entropy=entropy)
    assert sizes["payload_bytes"] < 200
    lengths = header(tmp_path / "constant")["contents"].split(" ")[5]
    assert lengths.count({"zlib": "z", "lzma": "l", "bz2": "b"}[entropy]) == 2  # positions and values; no book
    assert same(storage.load(tmp_path / "constant"), constant)


def header(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def test_any_safetensors_reader_shows_the_contents(tmp_path):
    state = {"a": torch.tensor([[0.0, 1.5]] * 8), "b": torch.tensor(7), "of two words": torch.zeros(0, 3)}
    state["tied"] = state["a"]
    storage.save(state, tmp_path / "m.sparse")
    metadata = header(tmp_path / "m.sparse")
    assert metadata["format"] == "pruninglab sparse 1"
    lines = metadata["contents"].split("\n")
    assert lines[0].startswith("F32 8,2 8 cols.bitmap book:1 2,0,4 ")
    assert lines[1].startswith("I64 - 1 dense raw 0,8,0 ")
    assert lines[2].endswith(" of two words")
    assert lines[3] == "= 0 tied"
    assert int.from_bytes((tmp_path / "m.sparse").read_bytes()[:8], "little") % 8 == 0  # aligned, as the format wants
    again = storage.load(tmp_path / "m.sparse")
    assert same(again, state)
    assert again["tied"] is again["a"]


def test_equal_models_make_equal_files(tmp_path):
    storage.save(small(), tmp_path / "a")
    storage.save(small(), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_batch_norm_buffers_and_odd_values_come_back(tmp_path):
    model = small()
    model(torch.randn(5, 2, 4, 4))
    model[1].running_var[0] = float("inf")
    model[0].weight.data[0, 0, 0, 0] = float("nan")
    model[0].weight.data[0, 0, 0, 1] = -0.0
    model[0].weight.data[0, 0, 0, 2] = 1e-45
    storage.save(model, tmp_path / "m")
    state = storage.load(tmp_path / "m")
    assert same(state, model.state_dict())
    assert (state["1.num_batches_tracked"].dtype, state["1.num_batches_tracked"].item()) == (torch.int64, 1)
    assert not state["0.weight"][0, 0, 0, 1].signbit()


@pytest.mark.parametrize("dtype", fileformat._DTYPES.values(), ids=str)
def test_every_dtype_comes_back(dtype, tmp_path):
    drawn = torch.randint(0, 2, (9, 14), generator=torch.Generator().manual_seed(0))
    state = {"some": (drawn * 3).to(dtype), "one": drawn[0, 0].to(dtype), "none": torch.zeros(4, 4).to(dtype)}
    storage.save(state, tmp_path / "m")
    assert same(storage.load(tmp_path / "m"), state)


def test_memory_format_and_slices_do_not_matter(tmp_path):
    model = seeded("lenet5").to(memory_format=torch.channels_last)
    storage.save(model, tmp_path / "m")
    assert same(storage.load(tmp_path / "m"), model.state_dict())
    whole = torch.arange(24.0).view(4, 6)
    square = torch.arange(9.0).view(3, 3)
    state = {"turned": whole.T, "part": whole[:, 1:3], "whole": whole, "square": square, "turned square": square.T}
    storage.save(state, tmp_path / "s")
    assert same(storage.load(tmp_path / "s"), state)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(30, 30), nn.Linear(30, 30)
        self.second.weight = self.first.weight


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    apart = copy.deepcopy(model)
    apart.second.weight = nn.Parameter(apart.first.weight.detach().clone())
    once, twice = storage.save(model, tmp_path / "m"), storage.save(apart, tmp_path / "twice")
    assert 2 * once["payload_bytes"] == twice["payload_bytes"]
    state = storage.load(tmp_path / "m")
    assert same(state, model.state_dict())
    assert state["first.weight"] is state["second.weight"]
    loaded = storage.load(tmp_path / "m", Tied())
    assert loaded.first.weight is loaded.second.weight
    assert same(loaded.state_dict(), model.state_dict())


def test_a_run_is_saved_by_its_model(tmp_path):
    data = lab.load("digits", train=60, test=20, size=8)
    run = lab.fit(lab.build("lenet300", data), data, lab.methods.OneShot(0.9), epochs=1, progress=False)
    storage.save(run, tmp_path / "m")
    assert same(storage.load(tmp_path / "m"), run.model.state_dict())
    quoted = storage.sizes(run.model)
    assert run.result.size == quoted
    assert quoted["sparse_bytes"] == (tmp_path / "m").stat().st_size


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    model = small()
    storage.save(model, tmp_path / "m", entropy="lzma")

    def refuse(*_, **__):
        raise AssertionError("unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    assert same(storage.load(tmp_path / "m"), model.state_dict())


# Values


def test_a_code_book_is_exact_and_as_narrow_as_its_values(tmp_path):
    model = quantized()
    sizes = storage.save(model, tmp_path / "m", values="codebook")
    assert same(storage.load(tmp_path / "m"), model.state_dict())
    books = 32 * sum(2**bits for _, bits in LENET.values())
    assert sizes["data_bits"] == sum(kept * bits for kept, bits in LENET.values()) + books
    assert sizes == storage.save(model, tmp_path / "m")  # the smaller, without being asked
    plain = storage.save(model, tmp_path / "m", values="fp32")
    assert plain["data_bits"] == 32 * sum(kept for kept, _ in LENET.values())
    assert plain["index_bits"] == sizes["index_bits"]


def test_a_code_book_has_a_limit(tmp_path):
    several = torch.arange(1.0, 2**16 + 1).view(256, 256)
    storage.save({"w": several}, tmp_path / "m", values="codebook")
    assert same(storage.load(tmp_path / "m"), {"w": several})
    too_many = torch.cat([several, torch.full((1, 256), -1.0)])
    with pytest.raises(
        lab.ConfigError, match=r"w cannot have a code book: more than 65,536 distinct values\. Quantize"
    ):
        storage.save({"w": too_many}, tmp_path / "m", values="codebook")
    storage.save({"w": too_many}, tmp_path / "m")
    assert same(storage.load(tmp_path / "m"), {"w": too_many})


@pytest.mark.parametrize(("values", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_narrow_values_round_to_nearest_and_say_so(values, dtype, tmp_path):
    model = small()
    sizes = storage.save(model, tmp_path / "m", values=values)
    state, own = storage.load(tmp_path / "m"), model.state_dict()
    for name, tensor in own.items():
        expected = tensor.to(dtype).to(tensor.dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor
        assert torch.equal(state[name], expected)
        assert state[name].dtype == tensor.dtype
    assert sizes["rounded"] == sum(int((state[n] != t).sum()) for n, t in own.items()) > 0
    assert sizes["data_bits"] <= 16 * sizes["weights_nonzero"]
    step = torch.finfo(dtype).eps  # between 1 and 1 + step the middle goes to the even one
    state = {"w": torch.tensor([[1 + step / 2, 1 + 3 * step / 2, 1.0]])}
    assert storage.save(state, tmp_path / "w", values=values)["rounded"] == 2
    assert storage.load(tmp_path / "w")["w"].tolist() == [[1.0, 1 + 2 * step, 1.0]]
    both = storage.save(model, tmp_path / "m", values=values, others=values)
    assert both["sparse_bytes"] < sizes["sparse_bytes"]
    assert both["rounded"] > sizes["rounded"]


def test_what_rounds_to_zero_is_not_stored_and_what_overflows_is_refused(tmp_path):
    sizes = storage.save({"w": torch.tensor([[1e-9, 1.0]])}, tmp_path / "m", values="fp16")
    assert (sizes["weights_nonzero"], sizes["rounded"]) == (1, 1)
    with pytest.raises(lab.ConfigError, match=r"w has values beyond the range of torch\.float16; take bf16"):
        storage.save({"w": torch.tensor([[1e9, 1.0]])}, tmp_path / "m", values="fp16")
    odd = {"w": torch.tensor([[math.inf, 1.0, math.nan]])}
    assert storage.save(odd, tmp_path / "m", values="fp16")["rounded"] == 0
    assert torch.equal(storage.load(tmp_path / "m")["w"].nan_to_num(nan=7), odd["w"].nan_to_num(nan=7))


def test_a_half_precision_model_is_not_widened(tmp_path):
    model = small().half()
    sizes = storage.save(model, tmp_path / "m", values="fp32")
    assert same(storage.load(tmp_path / "m"), model.state_dict())
    assert sizes["data_bits"] == 16 * sizes["weights_nonzero"]


# Damage


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "m"
    storage.save(small(), path)
    return path.read_bytes()


def test_a_flipped_byte_is_refused_wherever_it_is(content):
    chance = random.Random(0)
    for place in range(len(content)):
        for change in (1, 0x20, chance.randrange(2, 256)):
            altered = bytearray(content)
            altered[place] ^= change
            with pytest.raises(
                ValueError, match=r"header|altered|cut off|no safetensors|not of the format|follow its end"
            ):
                fileformat.unpack(bytes(altered))


def test_a_file_cut_off_anywhere_is_refused(content):
    for length in range(len(content)):
        with pytest.raises(ValueError, match=r"cut off|no safetensors"):
            fileformat.unpack(content[:length])


def test_the_message_names_the_file_the_tensor_and_the_reason(content, tmp_path):
    path = tmp_path / "m"

    def refused(altered: bytes, reason: str) -> None:
        path.write_bytes(altered)
        with pytest.raises(lab.DataError, match=rf"m is refused: {reason}.*storage\.save"):
            storage.load(path)

    start = 8 + int.from_bytes(content[:8], "little")
    for entry in fileformat.pack(small().state_dict()).entries:
        stop = start + sum(map(len, entry.streams))
        if stop == start:  # all zero
            continue
        middle = (start + stop) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
        refused(flipped, rf"{entry.name} has been altered: its bytes do not match")
        refused(content[:middle], rf"it is cut off inside {entry.name}, at {middle:,} bytes")
        start = stop
    refused(content + b"more", "4 bytes follow its end")
    refused(content[:100], "it is cut off inside its header, at 100 bytes")
    refused(b"", "it is no safetensors file")
    refused(b"PK\x03\x04" * 50, "it is no safetensors file")
    refused(storage.state_bytes(small()), "it is a safetensors file, but not of the format 'pruninglab sparse 1'")
    with pytest.raises(lab.DataError, match=r"nothing cannot be read: .*No such file"):
        storage.load(tmp_path / "nothing")


def test_a_file_with_right_checksums_and_wrong_contents_names_the_tensor():
    packed = fileformat.pack({"w": torch.tensor([[0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]])})
    for old, new, reason in (
        ("F32 1,8", "F32 1,4", "positions instead of 2|not aligned|out of bounds"),
        ("F32 1,8 2", "F32 1,8 3", "positions instead of 3|values instead of 3"),
        ("gap:2", "nonsense", "nonsense"),
        ("gap:2", "gap:0", "zero"),
        ("raw 1,8,0", "raw 1z,8,0", "decompress"),
        (packed.lines[0], "= 5 w", "range"),
        ("F32", "F99", "F99"),
    ):
        line = packed.lines[0].replace(old, new)
        assert line != packed.lines[0]
        with pytest.raises(ValueError, match=f"w cannot be decoded .*({reason})"):
            fileformat.unpack(fileformat.Packed([line], packed.entries).content())


def test_a_kill_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    model = small()
    storage.save(model, tmp_path / "m")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.save(sparse(small(), 0.99), tmp_path / "m")
    monkeypatch.undo()
    assert same(storage.load(tmp_path / "m"), model.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


# What is asked wrongly


def test_unknown_options_are_refused_with_the_known_ones(tmp_path):
    model = small()
    known = {
        "values": ("int8", "'exact', 'fp32', 'fp16', 'bf16', 'codebook'"),
        "others": ("codebook", "'exact', 'fp16', 'bf16'"),
        "entropy": ("gzip", "'zlib', 'lzma', 'bz2' or None"),
    }
    for option, (wrong, expected) in known.items():
        given: Any = {option: wrong}
        with pytest.raises(lab.ConfigError, match=f"{option}='{wrong}'; expected one of {expected}"):
            storage.save(model, tmp_path / "m", **given)
    with pytest.raises(lab.ConfigError, match=r"path=.* is a folder"):
        storage.save(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_a_file_cannot_hold_is_named(tmp_path):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"extra": {"not": "a tensor"}}, "expected .* a dict of names to Tensors"),
        ({"c": torch.zeros(2, dtype=torch.complex64)}, r"c is torch\.complex64"),
        ({"s": torch.eye(3).to_sparse()}, r"s is torch\.float32, torch\.sparse_coo"),
        ({"m": torch.zeros(2, device="meta")}, "on meta"),
        ({"line\nbreak": torch.zeros(2)}, "line break"),
    ]
    for state, reason in wrong:
        with pytest.raises(lab.ConfigError, match=reason):
            storage.save(state, tmp_path / "m")


def test_another_model_is_refused_and_left_as_it_was(tmp_path):
    storage.save(small(), tmp_path / "m")
    for other, difference in (
        (seeded("lenet5"), r"differ in 0\.bias, 0\.weight"),
        (nn.Sequential(nn.Conv2d(2, 6, 5), *small()[1:]), r"differ in 0\.weight"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(lab.ConfigError, match=difference):
            storage.load(tmp_path / "m", other)
        assert same(other.state_dict(), before)


# Sizes


def test_sizes_by_hand():
    model = nn.Linear(8, 2)
    model.weight.data = torch.tensor([[0.5, 0, 0, 0.25, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0.125, 0]])
    model.bias.data = torch.tensor([1.0, 2.0])
    sizes = storage.sizes(model)
    assert (sizes["parameters"], sizes["nonzero"], sizes["weights"], sizes["weights_nonzero"]) == (18, 5, 16, 3)
    # gaps 0, 2, 10 by rows; by columns 0, 5, 6; the live columns 0, 3, 6 are 8 bits and 110 001 six more
    assert sizes["index_bits"] == min(codec.costs((model.weight != 0).numpy()).values()) <= 14
    assert sizes["data_bits"] == 3 * 32  # 3 x 24, a bit for 0x3F or 0x3E, and these two are 12 bytes as well
    assert sizes["payload_bytes"] == 12 + -(-sizes["index_bits"] // 8)
    assert sizes["sparse_bytes"] > sizes["payload_bytes"] + 2 * 4


def test_positions_of_pruned_biases_count_in_the_file_only():
    torch.manual_seed(0)
    full, pruned = nn.Linear(4, 200), nn.Linear(4, 200)
    pruned.weight = full.weight
    pruned.bias.data[5:] = 0
    a, b = (storage.sizes(model, compressed=True) for model in (full, pruned))
    assert a["index_bits"] == b["index_bits"] == 0
    assert {key for key in a if a[key] != b[key]} == {"nonzero", "gzip_bytes", "bzip2_bytes", "sparse_bytes"}


def test_sizes_are_those_of_the_file(tmp_path):
    for model in (small(), quantized(), seeded("lenet300")):
        sizes, saved = storage.sizes(model), storage.save(model, tmp_path / "m")
        assert {key: sizes[key] for key in saved if key != "rounded"} == {
            k: v for k, v in saved.items() if k != "rounded"
        }
        assert sizes["sparse_bytes"] == (tmp_path / "m").stat().st_size
        torch.save(model.state_dict(), tmp_path / "plain.pt")
        assert sizes["state_dict_bytes"] == pytest.approx((tmp_path / "plain.pt").stat().st_size, abs=2000)
        table = storage.layer_sizes(model)
        assert table["bytes"].iloc[-1] == sizes["sparse_bytes"] == table["bytes"].iloc[:-1].sum()
        assert table["bytes"].iloc[:-3].sum() == sizes["payload_bytes"]
        assert table["kept"].iloc[:-3].sum() == sizes["weights_nonzero"]


def test_sizes_under_masks_are_those_after_the_cut():
    model = seeded("lenet300")
    before = copy.deepcopy(model.state_dict())
    masks = lab.keep_top({n: w.detach().abs() for n, w in lab.prunable(model).items()}, 0.9)
    under = storage.sizes(model, masks)
    assert same(model.state_dict(), before)
    masks.apply_({n: w.data for n, w in lab.prunable(model).items()})
    assert under == storage.sizes(model)
    with pytest.raises(lab.ConfigError, match=r"masks are of another model; they differ in fc9\.weight"):
        storage.sizes(model, {"fc9.weight": torch.ones(1, dtype=torch.bool)})


@pytest.mark.parametrize("trained", [False, True])
def test_at_99_percent_the_file_is_smaller_than_bzip2_of_the_dense_one(trained):
    model = seeded("lenet5")
    if trained:  # heavy tails, and some rows and columns much larger than others
        for weight in lab.prunable(model).values():
            flat = weight.data.view(len(weight), -1)
            flat *= torch.randn(len(flat), 1).exp() * torch.randn(flat.shape[1]).exp()
    model, _ = lab.prune(model, 0.99, collapse="allow")
    sizes = storage.sizes(model, compressed=True)
    assert sizes["sparse_bytes"] < sizes["bzip2_bytes"] == len(bz2.compress(storage.state_bytes(model)))
    assert sizes["sparse_bytes"] < sizes["gzip_bytes"]


def test_the_paper_counts():
    """2,578 weights at 3 and 2 bits: positions at random cost 1 % more than their entropy, clustered ones less."""
    entropy = 0.0
    for layer, (kept, _) in LENET.items():
        total = seeded("lenet5").get_submodule(layer).weight.numel()
        entropy += (math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)) / math.log(2)
    drawn, clustered = storage.sizes(quantized()), storage.sizes(quantized(clustered=True))
    assert drawn["weights_nonzero"] == clustered["weights_nonzero"] == 2578
    assert drawn["data_bits"] == 7260
    assert entropy < drawn["index_bits"] < 1.02 * entropy
    assert clustered["index_bits"] < 0.9 * entropy
    assert drawn["payload_bytes"] < 3500
    assert drawn["sparse_bytes"] < 6500


def test_index_sizes_have_a_line_for_each_weight_and_a_column_for_each_coding():
    model = quantized(clustered=True)
    table = storage.index_sizes(model)
    assert list(table.index) == [f"{layer}.weight" for layer in LENET]
    kinds = {"bitmap", "gap", "rice", "csr"}
    assert set(table.columns) == kinds | {f"live {kind}" for kind in kinds}
    chosen = storage.layer_sizes(model).set_index("layer")["index_bytes"]
    assert (table.min(axis=1) == chosen[list(table.index)]).all()
    assert table.loc["fc1.weight", "bitmap"] == 400_000 / 8


def test_the_size_of_a_dense_file_is_known_without_its_making():
    """Of every type that a state dict may have, and of names that JSON writes otherwise."""
    model = nn.Linear(300, 70)
    for i, dtype in enumerate(fileformat._DTYPES.values()):
        model.register_buffer(f'b{i}"ü\n', torch.zeros(3 + 7 * i).to(dtype))
        model.register_buffer(f"{i}", torch.zeros(()).to(dtype))
    for one in (model, nn.Linear(2, 2), nn.Sequential(), nn.Linear(2, 2, dtype=torch.complex64)):
        assert storage.sizes(one)["bytes"] == len(storage.state_bytes(one))


@pytest.mark.parametrize("values", ["exact", "fp32", "bf16"])
def test_a_file_that_is_only_measured_is_as_long_as_one_that_is_written(values):
    state = {"ü": torch.randn(20, 30) * (torch.rand(20, 30) < 0.2), "b": torch.arange(5), "c": torch.tensor(1.0)}
    written, measured = (fileformat.pack(state, values, streams=streams) for streams in (True, False))
    assert measured.size == written.size == len(written.content())
    assert [entry.data_bytes for entry in measured.entries] == [entry.data_bytes for entry in written.entries]
    assert not any(entry.streams for entry in measured.entries)
