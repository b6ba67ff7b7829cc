"""Prepare and verify a data set: python -m meta_exp.tasks omniglot [ROOT] [--download], or meta-exp tasks ..."""

import os
from argparse import ArgumentParser

from rich.console import Console
from rich.table import Table

from meta_exp import cli
from meta_exp.installation import typed
from meta_exp.tasks import MiniImagenet, Omniglot
from meta_exp.terminal import plain

DATA_SETS = {"omniglot": Omniglot, "mini_imagenet": MiniImagenet}


def main() -> None:
    """Convert the data set if need be, check every image against its hash, and print what there is."""
    parser = ArgumentParser(typed("tasks"), description="Prepare and verify a data set, and count it.")
    parser.add_argument("data_set", choices=DATA_SETS)
    root = os.environ.get("META_EXP_DATA") or "data"
    parser.add_argument("root", nargs="?", default=root, help="its folder; META_EXP_DATA, or else data")
    parser.add_argument("--download", action="store_true", help="fetch it with learn2learn where it is missing")
    arguments = parser.parse_args()
    family = DATA_SETS[arguments.data_set](arguments.root, download=arguments.download)
    store = family.store
    store.verify()
    size = " x ".join(map(str, store.pixels.shape[1:]))
    table = Table("split", "classes", "images", title=f"{arguments.data_set}: {size}", title_justify="left")
    for split, indices in family.split_classes.items():
        table.add_row(split, f"{len(indices)}", f"{sum(store.counts[index] for index in indices)}")
    table.add_section()
    table.add_row("all", f"{len(store.counts)}", f"{len(store.pixels)}")
    console = Console()
    console.print(table)
    place = plain(store.file or "in memory only")
    console.print(f"verified, content {store.content}: {place}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
