"""`tamis doctor`: shows what `service.operations.doctor` finds wrong with a root and its machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import typer

from service.commands.options import AsJson, Root, print_json
from service.names import printable
from service.operations.doctor import examine


def doctor(root: Root, as_json: AsJson = False) -> None:
    findings = examine(root)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            typer.echo(f"{finding.level:<8} {printable(finding.check)}: {printable(finding.found)}")
            if finding.advice:
                typer.echo(f"{'':<8}   → {printable(finding.advice)}")
        counts = Counter(finding.level for finding in findings)
        typer.echo(f"{counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok")
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)
