"""`secateur bench tenseal-cnn`: TenSEAL's own high-level API against this project's tenseal back end, same weights."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from .options import Cache, Data, Images, Json, Recipe
from .output import emit, facts_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from .local import Local
    from .tenseal_tutorial import TensealTutorial

    Floats = npt.NDArray[np.float64]

__all__ = ["tenseal_cnn"]

RECIPE = "mnist-tenseal-cnn"
THREADS = 2


def tenseal_cnn(
    images: Images = 20,
    recipe: Recipe = RECIPE,
    data: Data = None,
    cache: Cache = None,
    as_json: Json = False,
) -> None:
    """This project against TenSEAL's own high-level API on its MNIST network.

    Both have the same weights and images, in turn; timed is from encrypted input to encrypted output.
    """
    import numpy as np

    from he_runtime import compile, run_clear
    from he_runtime.cost import load_default
    from he_runtime.cost.calibrate import machine_name
    from he_runtime.reference import forward, normalize

    from .local import Local
    from .tenseal_tutorial import DEGREE, TensealTutorial
    from .trained import data_of, trained

    model = trained(recipe, cache, data)
    dataset = data_of(recipe, data)
    x = normalize(model.input, dataset.x_test[:images])
    theirs = TensealTutorial(model, float(np.abs(forward(model, x)).max()), THREADS)
    say("planning, making keys and encoding weights ...")
    planned = compile(model, degrees=(DEGREE,), table=load_default("tenseal"))
    ours = Local(planned, "tenseal")
    record = _compare(theirs, ours, x, run_clear(planned, x)) | {
        "N": planned.params.degree,
        "log2_qp": planned.params.log2_qp,
        "threads": THREADS,
        "data": dataset.name,
        "accuracy": model.metadata.get("accuracy", {}).get("final"),
        "machine": machine_name(),
    }
    emit(record, as_json, lambda console: _render(console, record))


def _compare(theirs: TensealTutorial, ours: Local, x: Floats, clear: Floats) -> dict[str, Any]:
    """Both on every sample in turn: medians of seconds, and logits against the clear ones (images, classes)."""
    import numpy as np

    from .tenseal_tutorial import MODULUS_BITS

    rounds = []
    for k, sample in enumerate(x):
        rounds.append((theirs.run(sample), ours.timed(sample)))
        say(f"image {k + 1} of {len(x)}: TenSEAL {rounds[-1][0][0]:.2f} s, ours {rounds[-1][1][0]:.2f} s")
    tenseal_s, ours_s = (statistics.median(r[side][0] for r in rounds) for side in (0, 1))
    their_logits, our_logits = (np.stack([r[side][1] for r in rounds]) for side in (0, 1))
    largest = np.abs(clear).max()
    return {
        "tenseal_s": tenseal_s,
        "ours_s": ours_s,
        "ratio": tenseal_s / ours_s,
        "argmax_matches": _matches(our_logits, clear),
        "tenseal_argmax_matches": _matches(their_logits, clear),
        "images": len(x),
        "relative_error": float(np.abs(our_logits - clear).max() / largest),
        "tenseal_relative_error": float(np.abs(their_logits - clear).max() / largest),
        "tenseal_log2_qp": float(sum(MODULUS_BITS)),
        "encode_s": ours.encode_s,
        "ratio_with_encoding": tenseal_s / (ours_s + ours.encode_s),
    }


def _matches(logits: Floats, clear: Floats) -> int:
    return int((logits.reshape(clear.shape).argmax(axis=1) == clear.argmax(axis=1)).sum())


def _render(console: Console, record: dict[str, Any]) -> None:
    facts = [
        ("TenSEAL", f"{record['tenseal_s']:.2f} s (encodes its weights in every call)"),
        ("ours", f"{record['ours_s']:.3f} s, after {record['encode_s']:.2f} s of encoding weights, once"),
        ("ratio", f"{record['ratio']:.1f} ({record['ratio_with_encoding']:.1f} if encoding counted every time)"),
        ("argmax", f"{record['argmax_matches']} of {record['images']} as in the clear"),
        (
            "error",
            f"{record['relative_error']:.2%} of the largest logit (TenSEAL {record['tenseal_relative_error']:.2%})",
        ),
        ("parameters", f"N={record['N']}, log2(QP)={record['log2_qp']:.1f} (TenSEAL {record['tenseal_log2_qp']:.0f})"),
        ("data", f"{record['data']}, {record['images']} test images"),
        ("machine", f"{record['machine']}, {record['threads']} threads allowed to both"),
    ]
    console.print(facts_table("TenSEAL's MNIST tutorial network, medians", facts))
