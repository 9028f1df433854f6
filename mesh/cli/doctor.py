"""`mesh doctor`: what is wrong with this machine, and what helps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mesh.cli.cluster import DEFAULT_PORT
from mesh.cli.errors import ExitCode, Failure
from mesh.cli.output import print_objects
from mesh.cli.session import Session, pass_session, styled

if TYPE_CHECKING:
    from mesh.doctor.checks import Finding, Wanted

_COLOURS = {"ok": "green", "note": "blue", "warning": "yellow", "error": "red"}
_STATE_DIR = Path("/var/lib/meshd")
_VXLAN_PORT = 4789


@click.command("doctor")
@click.option("-f", "--format", "format_", metavar="FORMAT", default="text", help="text, json, jsonl, or a template.")
@pass_session
def doctor(session: Session, format_: str) -> None:
    """Look for what keeps this machine from working in a mesh: kernel, ports, sysctls, MTU, clock, firewalls.

    Nothing is changed. The exit code is 7 when something is wrong.

    \b
    Examples:
      mesh doctor
      mesh doctor --format '{{.Level}} {{.What}}: {{.Fix}}'
    """
    from mesh.doctor.checks import examine
    from mesh.doctor.look import gather

    wanted, daemon = _wanted(session)
    findings = [*daemon, *examine(gather(_STATE_DIR), wanted)]
    if format_ == "text":
        for one in findings:
            click.echo(f"{styled(f'{one.level:>7}', _COLOURS[one.level])}  {one.what}: {one.found}")
            if one.fix:
                click.echo(f"{'':>9}fix: {one.fix}")
    else:
        shown = [{"level": one.level, "what": one.what, "found": one.found, "fix": one.fix} for one in findings]
        print_objects(format_, shown)
    if any(one.level in ("warning", "error") for one in findings):
        raise click.exceptions.Exit(ExitCode.DEGRADED)


def _wanted(session: Session) -> tuple[Wanted, list[Finding]]:
    """What meshd uses here, as far as it can be asked, and what it says of itself."""
    from control.model import Cluster, Node
    from mesh.doctor.checks import Finding, Wanted

    nothing = Wanted(DEFAULT_PORT, _VXLAN_PORT, "")
    try:
        client = session.client()
        about = client.info()
    except Failure as failure:
        fix = "systemctl start meshd; journalctl -u meshd"
        return nothing, [Finding("warning", "meshd", str(failure), fix)]
    running = replace(nothing, running=True)
    if about.state == "idle":
        return running, [Finding("ok", "meshd", "runs, in no cluster", "mesh init, or mesh join")]
    findings = [Finding("ok", "meshd", f"runs as {about.role} {about.node_name}, balances by {about.balancer}")]
    if about.error:
        findings.append(Finding("error", "meshd", about.error, "journalctl -u meshd"))
    try:
        node, cluster = client.get(Node, about.node_id), client.get(Cluster, "")
    except Failure as failure:
        fix = "mesh status; see whether the managers can be reached"
        return running, [*findings, Finding("error", "managers", str(failure), fix)]
    port = int(node.control_address.rpartition(":")[2] or DEFAULT_PORT)
    return replace(
        running,
        control_port=port,
        vxlan_port=cluster.spec.vxlan_port,
        wireguard_port=cluster.spec.wireguard_port,
        data_address=node.status.data_address,
    ), findings
