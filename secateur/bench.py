"""`secateur bench`: measurements of this project on this machine."""

from __future__ import annotations

import typer

from . import bench_accuracy, bench_kernel, bench_latency, bench_mnist, bench_tenseal

__all__ = ["app"]

app = typer.Typer(
    help="Measure on this machine: accuracy, latency, and against TenSEAL and Orion.", no_args_is_help=True
)
app.command("tenseal-cnn")(bench_tenseal.tenseal_cnn)
app.command("accuracy")(bench_accuracy.accuracy)
app.command("latency")(bench_latency.latency)
app.command("mnist")(bench_mnist.mnist)
app.command("kernel")(bench_kernel.kernel)
