"""`fcn-deploy doctor`."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from fcn_deploy.cli.parameters import Json

if TYPE_CHECKING:
    from fcn_deploy.doctor import Finding

EPILOG = "Example: fcn-deploy doctor"
_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


def doctor(json: Json = False) -> None:
    """Look at versions, providers, NVIDIA's libraries, memory and disk; say what to do about each problem.

    Exit code 4 when something is wrong that stops every run, 0 otherwise.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json

    findings = fd.examine()
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        _show(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(fd.ProviderError.exit_code)


def _show(findings: "tuple[Finding, ...]") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line

    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        colour = _COLOURS[finding.status]
        print_line(f"[{colour}]{finding.status:8}[/] {finding.name:{width}}  {escape(finding.value)}")
        if finding.remedy:
            print_line(f"{'':{width + 11}}-> {escape(finding.remedy)}")
