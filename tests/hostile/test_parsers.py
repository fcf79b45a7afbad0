"""Every parser of foreign bytes takes good objects, and refuses bad ones by an error of ours; `make fuzz` is the long form."""

from __future__ import annotations

from itertools import islice

import pytest

from he_runtime.errors import Reason, WireError
from tests.hostile.mutations import mutated
from tests.hostile.parsers import PARSERS, Parser

COUNT = 1500
every_parser = pytest.mark.parametrize("name", PARSERS)


@every_parser
def test_good_objects_are_taken(name: str) -> None:
    parser = PARSERS[name]
    assert all(parser.read(good) for good in parser.good())


@every_parser
def test_edited_objects_are_refused_by_an_error_of_ours(name: str) -> None:
    parser = PARSERS[name]
    taken = [parser.read(data) for data in islice(mutated(parser, 1), COUNT)]
    assert not all(taken) and taken.count(False) > COUNT / 4


def test_mutations_are_the_same_for_a_seed() -> None:
    parser = PARSERS["client-spec"]
    assert [*islice(mutated(parser, 5), 20)] == [*islice(mutated(parser, 5), 20)] != [*islice(mutated(parser, 6), 20)]


def test_an_error_that_is_not_ours_is_raised() -> None:
    def broken(data: bytes) -> None:
        raise (ValueError("of a library"), WireError("without a reason", Reason.INTERNAL), WireError("ours"))[len(data)]

    with pytest.raises(ValueError):
        Parser(broken, list).read(b"")
    with pytest.raises(AssertionError, match="without a reason"):
        Parser(broken, list).read(b"x")
    assert Parser(broken, list).read(b"xx") is False
