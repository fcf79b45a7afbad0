"""`secateur bench kernel`: rotations and transforms of the native kernel against SEAL's, one thread each, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .kernel_threads import one_thread
from .options import Json
from .output import emit, say, table

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["kernel"]

POINTS = ((8192, 3, 49), (16384, 8, 47), (32768, 14, 49))  # N, live primes, bits of each and of the special one
ROUNDS = {8192: 41, 16384: 15, 32768: 7}
TRANSFORM = (16384, 50)
TRANSFORM_ROUNDS = 101
QUICK_ROUNDS = 3

# At least these, by path; a path without any has no target.
ROTATION_TARGETS = {"ifma": 5.0, "avx2": 2.0}
HOISTED_TARGETS = {"ifma": 12.0}
HOISTED_BANDWIDTH = 0.7  # instead of the former
TRANSFORM_TARGETS = {"ifma": 6.5}


def kernel(
    path: Annotated[
        str | None,
        typer.Option(help="portable, avx2 or ifma; otherwise SECATEUR_KERNEL, or the fastest that this machine runs."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds per point, of which the median counts.", min=1)] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The smallest ring only, and few rounds.")] = False,
    as_json: Json = False,
) -> None:
    """Rotations and transforms of the native kernel against SEAL's.

    One thread each, in turn on the same keys and ciphertext. Sixteen hoisted rotations share one decomposition; SEAL has
    no such thing and rotates sixteen times. The bandwidth share is the time that reading the same keys takes over ours.
    """
    from he_runtime.cost.calibrate import machine_name
    from he_runtime.cost.environment import here

    from .kernel_contest import Point
    from .kernel_transforms import transform_times

    chosen = _path(path)
    points = [Point(*values) for values in POINTS[: 1 if quick else None]]
    times = {p.degree: rounds or (QUICK_ROUNDS if quick else ROUNDS[p.degree]) for p in points}
    transforms = rounds or (QUICK_ROUNDS if quick else TRANSFORM_ROUNDS)
    with one_thread():
        measured = [_measure(point, chosen, times[point.degree]) for point in points]
        ours, theirs = transform_times(*TRANSFORM, chosen, transforms)
    record = {
        **{name: [rows[name] for rows in measured] for name in ("rotation", "hoisted16", "upload")},
        "ntt_us": ours,
        "ntt_seal_us": theirs,
        "ntt_ratio": theirs / ours,
        "path": chosen,
        "prime_bits": {str(p.degree): p.bits for p in points} | {"ntt": TRANSFORM[1]},
        "rounds": {str(n): count for n, count in times.items()} | {"ntt": transforms},
        "threads": 1,
        "machine": machine_name(),
        "versions": here(("tenseal", "numpy", "python")).libraries,
    }
    emit(record, as_json, lambda console: _render(console, record))


def _path(asked: str | None) -> str:
    """BackendUnavailable without a kernel, InputError for a path that this machine does not run."""
    from he_runtime.errors import BackendUnavailable, InputError
    from he_runtime.kernel import status

    found = status()
    if not found.available or found.path is None:
        raise BackendUnavailable(
            f"cannot measure the native kernel: {found.reason}; try {found.remedy or 'make kernel'}"
        )
    if asked is not None and asked not in found.paths:
        raise InputError(f"cannot measure path {asked!r}: this machine runs {', '.join(found.paths)}")
    return asked or found.path


def _measure(point: Any, path: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Single and hoisted rotations and uploads at one point. Both sides of a single rotation must have the same bits."""
    from he_runtime.errors import BackendUnavailable

    from .kernel_contest import ROTATIONS, KernelContest

    say(f"N={point.degree}, {point.limbs}+1 primes of {point.bits} bits: making {ROTATIONS} keys ...")
    contest = KernelContest(point, path)
    if not contest.identical():
        raise BackendUnavailable("cannot measure rotations: the kernel's result is not SEAL's; try another path")
    say(f"N={point.degree}: {rounds} rounds ...")
    took = contest.medians(rounds)

    def row(seal: str, native: str, read: str) -> dict[str, Any]:
        return {
            "N": point.degree,
            "limbs": point.limbs,
            "seal_ms": took[seal],
            "native_ms": took[native],
            "ratio": took[seal] / took[native],
            "bandwidth_fraction": took[read] / took[native],
            "path": contest.ring.path,
        }

    fused = {"fused_ms": took["fused"], "fused_ratio": took["seal"] / took["fused"]}
    uploads = {f"{who}_ms": took[f"{who}_upload"] for who in ("seal", "native")}
    return {
        "rotation": row("seal_once", "native_once", "read_once"),
        "hoisted16": row("seal", "hoisted", "read") | fused,
        "upload": {"N": point.degree, "limbs": point.limbs} | uploads,
    }


def _render(console: Console, record: dict[str, Any]) -> None:
    path = record["path"]
    console.print(f"{record['machine']}, one thread, path {path}; medians of interleaved rounds")
    titles = {"rotation": "one rotation, as SEAL to the bit", "hoisted16": "sixteen rotations of one ciphertext"}
    for name, title in titles.items():
        drawn = table(("N", "primes", "SEAL", "native", "ratio", "of bandwidth", "target"), title)
        for row in record[name]:
            cells = (f"{row['seal_ms']:.2f} ms", f"{row['native_ms']:.3f} ms", f"{row['ratio']:.1f}")
            verdict = _rotation_verdict(row, path) if name == "rotation" else _hoisted_verdict(row, path)
            drawn.add_row(str(row["N"]), f"{row['limbs']}+1", *cells, f"{row['bandwidth_fraction']:.0%}", verdict)
        console.print()
        console.print(drawn)
    drawn = table(("N", "primes", "SEAL", "native"), "upload of a seeded ciphertext")
    for row in record["upload"]:
        times = (f"{row[key]:.3f} ms" for key in ("seal_ms", "native_ms"))
        drawn.add_row(str(row["N"]), f"{row['limbs']}+1", *times)
    console.print()
    console.print(drawn)
    console.print()
    ntt = f"{record['ntt_us']:.1f} us, SEAL {record['ntt_seal_us']:.1f} us, ratio {record['ntt_ratio']:.1f}"
    console.print(f"forward and inverse transform, N={TRANSFORM[0]}, a prime of {TRANSFORM[1]} bits:")
    console.print(f"{ntt}, target {_verdict(record['ntt_ratio'], TRANSFORM_TARGETS.get(path))}")


def _rotation_verdict(row: dict[str, Any], path: str) -> str:
    return _verdict(row["ratio"], ROTATION_TARGETS.get(path))


def _hoisted_verdict(row: dict[str, Any], path: str) -> str:
    if row["bandwidth_fraction"] >= HOISTED_BANDWIDTH:
        return f"{HOISTED_BANDWIDTH:.0%} met"
    return _verdict(row["ratio"], HOISTED_TARGETS.get(path))


def _verdict(ratio: float, target: float | None) -> str:
    if target is None:
        return "none"
    return f"{target:g} {'met' if ratio >= target else 'missed'}"
