"""The command that uploads a bundle to the Hugging Face hub: push."""

from functools import partial
from pathlib import Path

import click

from pplex.cli.command import command


@command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("repo")
@click.option("--public", is_flag=True, help="Let everybody see a new repository, or push to a public one.")
def push(bundle: Path, repo: str, public: bool) -> None:
    """Upload BUNDLE to the hub's repository REPO, such as YOU/NAME, with a model card. A new repository is private.

    It checks every file first. To use the bundle elsewhere: hf download REPO --local-dir BUNDLE
    """
    from pplex.cli.waiting import ends_at_once
    from pplex.export.push import push as push_bundle

    with ends_at_once():
        click.echo(push_bundle(bundle, repo, public, partial(click.echo, err=True)))
