"""A packed file is mapped, not copied: where its tensors lie, and what memory they take."""

import mmap
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from trilith.packed import read_packed
from trilith.runtime import Engine

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps").is_file(), reason="the system does not say what is mapped"
)


class Mapping(NamedTuple):
    """A part of this process's addresses; `rss_bytes` of it are in memory."""

    addresses: range
    rss_bytes: int


def _mappings(path: Path) -> list[Mapping]:
    """Where the kernel says that a file is mapped."""
    found = []
    for area in re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.M
    ):
        if area.partition("\n")[0].endswith(str(path.resolve())):
            start, end = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", area).groups()
            kilobytes = int(re.search(r"^Rss: +(\d+) kB$", area, re.M).group(1))
            found.append(Mapping(range(int(start, 16), int(end, 16)), 1024 * kilobytes))
    return found


def _resident_bytes(path: Path) -> int:
    return sum(mapping.rss_bytes for mapping in _mappings(path))


def _is_inside(tensor: Tensor, mapping: Mapping) -> bool:
    last = tensor.data_ptr() + tensor.nbytes - 1
    return tensor.data_ptr() in mapping.addresses and last in mapping.addresses


@pytest.fixture
def path(pack: Any) -> Path:
    """A file of some megabytes, nearly all of it one embedding."""
    return pack(embedding="f32", vocab_size=40_000).path


def test_every_tensor_of_a_file_that_was_read_lies_in_its_mapping(path: Path) -> None:
    for file in (read_packed(path), Engine.load(path).file):
        mappings = _mappings(path)
        assert len(file.tensors) > 10
        for name, tensor in file.tensors.items():
            assert any(_is_inside(tensor, mapping) for mapping in mappings), name


def test_a_file_that_was_read_and_loaded_takes_no_memory_of_its_size(path: Path) -> None:
    file_bytes = path.stat().st_size
    file = read_packed(path)
    assert _resident_bytes(path) < file_bytes // 4
    engine = Engine.load(path)
    assert _resident_bytes(path) < file_bytes // 4
    # The file is read all the same.
    embedding = file.tensors["embedding.weight"]
    assert torch.equal(engine.file.tensors["embedding.weight"], embedding)
    assert _resident_bytes(path) > 2 * embedding.nbytes


def test_a_tensor_that_is_let_go_leaves_the_memory_and_keeps_its_bytes(path: Path) -> None:
    file = read_packed(path)
    embedding = file.tensors["embedding.weight"]
    before = embedding.clone()
    held = _resident_bytes(path)
    assert held >= embedding.nbytes - 2 * mmap.PAGESIZE
    file.let_go(embedding)
    assert held - _resident_bytes(path) >= embedding.nbytes - 2 * mmap.PAGESIZE
    assert torch.equal(embedding, before)
    assert before.view(torch.uint8).numpy().tobytes() in path.read_bytes()


def test_a_tensor_from_elsewhere_is_not_let_go(path: Path) -> None:
    file = read_packed(path)
    copied = torch.full((1 << 20,), 7, dtype=torch.uint8)
    file.let_go(copied)
    assert bool((copied == 7).all())
