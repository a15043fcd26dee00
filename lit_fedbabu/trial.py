"""``lit-fedbabu trial --sites 3``: a server and its sites on this machine, to see it all work before sites meet."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lit_fedbabu import credentials
from lit_fedbabu.completion import Parser, complete, option_words
from lit_fedbabu.config import Config
from lit_fedbabu.config.derived import OF_SERVER, code_in
from lit_fedbabu.config.words import parse_words
from lit_fedbabu.ground.errors import InputError, one_line_errors
from lit_fedbabu.ground.files import dataset_folder, new_folder
from lit_fedbabu.ground.printing import say, waiting
from lit_fedbabu.ground.stops import STOPS, settle
from lit_fedbabu.ground.system import examples_folder, next_step

SITES = 3
"""Where nothing else is said."""


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="lit-fedbabu trial",
        description="Start a SuperLink with TLS and sites with keys on this machine, run a federation on them, and save"
        " each site's personal model. Nothing is left running, and all files are in one folder.",
    )
    about = "options, as of lit-fedbabu run: configs/sites.toml with drawn shapes, if no data are named; dataset=FOLDER"
    about += " has a folder of images for each site"
    parser.add_argument("words", nargs="*", metavar="CONFIG.toml | key=value", help=about)
    parser.add_argument("--sites", type=int, help=f"how many; as many as folders or num-clients, else {SITES}")
    parser.add_argument("--out", type=Path, default=Path("trial"), help="new or empty folder for all; %(default)s")
    complete(parser, words=option_words)
    arguments = parser.parse_intermixed_args(argv)
    folder: Path = arguments.out.resolve()
    options, images = _options(parse_words(arguments.words), arguments.sites, folder)
    config = Config.from_run_config(options)
    with new_folder("--out", folder, is_result=False):
        pass
    say(f"trial of {config.num_clients} sites on this machine; all of it is in {folder}")
    try:
        return _trial(options, images, folder)
    except STOPS as stop:
        shutil.rmtree(folder)
        stop.add_note(f"nothing is left of the trial, and {folder} was removed")
        raise


def _options(given: dict[str, Any], sites: int | None, folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """The options of the run, and the folders of the sites' images; empty: the sites have none, or they are drawn.

    Raises:
        InputError: they are not those of a run on sites.
    """
    options = {"partitioner": "sites", "fraction-train": 1.0, **given}
    images: list[Path] = []
    if not given.get("task"):
        options = {**parse_words(["sites"]), **options}
        if found := dataset_folder(str(options["dataset"])):
            images = sorted(path for path in found[0].iterdir() if (path / "train").is_dir())
            if "class-names" not in given:
                names = {path.name for site in images for path in (site / "train").iterdir() if path.is_dir()}
                options["class-names"] = sorted(names)
            options["dataset"] = found[0].resolve().name
        elif options["dataset"] != "shapes":
            remedy = (
                "a trial needs a folder that has a folder for each site, as site-0/train/cat/1.png; or leave it out"
            )
            raise InputError("dataset", options["dataset"], remedy)
        if found and len(images) < (sites or 2):
            raise InputError(
                "dataset", str(found[0]), f"has {len(images)} folders with train/ in them; a site needs one"
            )
    if options["partitioner"] != "sites":
        raise InputError("partitioner", options["partitioner"], "a trial's sites have data of their own; leave it out")
    count = sites or given.get("num-clients") or len(images) or SITES
    if count < 2:
        raise InputError("--sites", count, "must be at least 2")
    if given.get("num-clients", count) != count:
        raise InputError("--sites", count, f"num-clients is {given['num-clients']}; leave one of them out")
    options |= {"num-clients": count, "output-dir": str(folder / "runs"), "run-name": given.get("run-name") or "trial"}
    return options, images[:count]


def _trial(options: dict[str, Any], images: Sequence[Path], folder: Path) -> int:
    """Do it all; returns the exit status."""
    sites = range(int(options["num-clients"]))
    if not images and not options.get("task"):
        images = [folder / "images" / f"site-{site}" for site in sites]
        _draw(images)
    else:
        for site, path in enumerate(images):
            say(f"site-{site} has the images in {path}")
    credentials.make(folder / "credentials", len(sites), is_result=False)
    say(f"certificates and keys: {folder / 'credentials'}")
    with waiting("loading Flower and PyTorch"):
        from lit_fedbabu.engines import flower, superlink
        from lit_fedbabu.engines.lab import Lab
        from lit_fedbabu.records.progress import Lines
    with superlink.home_of_own() as home:
        lab = Lab(folder, home)
        say(f"starting the server on {lab.address}, with TLS, which takes sites by their keys")
        with waiting("starting the server"):
            lab.start_superlink()
        lab.register(sites)
        say(f"starting {len(sites)} sites, each with its own key; what they say is in {folder}/site-*.log")
        for site in sites:
            lab.start(f"site-{site}", lab.site_command(site, _node_config(site, options, images, folder)))
        with waiting("starting the sites"):
            lab.wait_for(sites)
        say("all sites are there")
        run = folder / "runs" / str(options["run-name"])
        status = flower.follow(home, options, run, Lines())
    if status:
        say(f"what the server and the sites said is in {folder}/*.log", sys.stderr)
        return status
    models = _personal(options, folder)
    settle()
    say(f"the server and the sites have ended; {folder} has all that they wrote")
    say(next_step("sites", run))
    if images:
        image = next(iter(sorted((images[0] / "test").rglob("*.*"))), images[0])
        say(next_step("predict", models[0], image))
    return 0


def _personal(options: dict[str, Any], folder: Path) -> list[Path]:
    """Make and save each site's personal model, from what the site keeps, as it would itself; returns their folders."""
    from lit_fedbabu.finetune import finetune

    models, code = [], cast("dict[str, Any]", _code(options))
    for site in range(int(options["num-clients"])):
        say(f"site-{site} makes its personal model")
        (state,) = (folder / "state" / f"client-{site}").iterdir()
        with waiting("fine-tuning"):
            (result,) = finetune(state, save=True, **{key.replace("-", "_"): path for key, path in code.items()})
        models.append(cast(Path, result.folder))
    return models


def _node_config(site: int, options: dict[str, Any], images: Sequence[Path], folder: Path) -> str:
    entries: dict[str, Any] = {"client-id": site, "state-path": str(folder / "state"), **_code(options)}
    entries |= {"data-path": str(images[site].resolve())} if images else {}
    return " ".join(f"{key}={json.dumps(value)}" for key, value in entries.items())


def _code(options: dict[str, Any]) -> dict[str, str]:
    """Of the options those with code of the user's own that sites import, which each has to be given."""
    return {key: path for key, path in code_in(options).items() if key not in OF_SERVER}


def _draw(folders: Sequence[Path]) -> None:
    """Draw images for sites, of which none has all shapes."""
    place = importlib.util.spec_from_file_location("shapes", examples_folder() / "shapes.py")
    shapes = importlib.util.module_from_spec(place)  # type: ignore[arg-type] # a file that is there
    with waiting("drawing images"):
        place.loader.exec_module(shapes)  # type: ignore[union-attr]
        for site, folder in enumerate(folders):
            own = [shapes.SHAPES[(site + more) % len(shapes.SHAPES)] for more in range(2)]
            shapes.write(folder, shapes=own, seed=site)
            say(f"site-{site} has drawn images of {' and '.join(own)}: {folder}")


if __name__ == "__main__":
    sys.exit(main())
