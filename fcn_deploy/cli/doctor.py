"""`fcn-deploy doctor`."""

from dataclasses import asdict

import typer

from fcn_deploy.cli.parameters import Json


def doctor(json: Json = False) -> None:
    """Check versions, providers, NVIDIA libraries, memory and disk; say how to fix each problem.

    Exit code 4: no model can run here.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json
    from fcn_deploy.cli.render import print_findings

    findings = fd.examine()
    if json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(fd.ProviderError.exit_code)
