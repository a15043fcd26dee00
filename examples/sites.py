"""Images for three sites, of which none has all shapes: run this file before docs/deployment.md is tried out."""

from pathlib import Path

from examples import shapes

OWN = (("circle", "square"), ("triangle", "cross"), ("circle", "cross"))

if __name__ == "__main__":
    for site, own in enumerate(OWN):
        shapes.write(Path(f"data/site-{site}"), shapes=own, seed=site)
        print(f"data/site-{site}: {', '.join(own)}")
