"""The application: which commands there are. Each imports what it needs when it runs, so `--help` stays quick."""

from __future__ import annotations

import typer

from . import (
    admin,
    audit,
    bench,
    calibrate,
    client,
    compress,
    demo,
    doctor,
    estimate,
    plan,
    predict,
    recommend,
    serve,
    sweep,
)
from .errors import OneLineErrors

__all__ = ["app"]

app = typer.Typer(
    name="secateur",
    cls=OneLineErrors,
    help="Turn a PyTorch model into a small encrypted service: compress, plan, price, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("recommend")(recommend.recommend)
app.command("compress")(compress.compress)
app.command("plan")(plan.plan)
app.command("estimate")(estimate.estimate)
app.command("serve")(serve.serve)
app.command("predict")(predict.predict)
app.add_typer(client.app, name="client")
app.command("calibrate")(calibrate.calibrate)
app.add_typer(bench.app, name="bench")
app.command("sweep")(sweep.sweep)
app.command("doctor")(doctor.doctor)
app.add_typer(admin.app, name="admin")
app.add_typer(audit.app, name="audit")
