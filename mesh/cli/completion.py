"""`mesh completion`: the script that a shell sources; names of services, nodes and so on are asked for as one types."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command("completion")
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Examples:
      mesh completion bash > /etc/bash_completion.d/mesh
      mesh completion zsh > "${fpath[1]}/_mesh"
      mesh completion fish > ~/.config/fish/completions/mesh.fish
    """
    cls = get_completion_class(shell)
    assert cls is not None, shell
    root = ctx.find_root().command
    # The script is the template filled in; `source()` would also run bash to ask for its version.
    made = cls(root, {}, "mesh", "_MESH_COMPLETE")
    click.echo(made.source_template % made.source_vars())
