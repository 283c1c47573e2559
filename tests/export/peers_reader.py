"""Run by the Python of the peers' environment: loads exported folders with their own tools and writes what those make of x.

Argument: a JSON file with a list of {"kind", "place", "x", "out"}; `place` is a folder, or USER/REPO#FOLDER for `hub`.
Writes acts and recon to each `out` and prints the list of metadata as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def read(kind: str, place: str, x: str, out: str) -> dict:
    """Returns the metadata that the tool has of one folder."""
    if kind == "dictionary_learning":
        from dictionary_learning.utils import load_dictionary

        sae, config = load_dictionary(place, "cpu")
        metadata = {"class": type(sae).__name__, **config["trainer"], "ctx_len": config["buffer"]["ctx_len"]}
    else:
        from sae_lens import SAE

        sae = SAE.from_pretrained(*place.split("#")) if kind == "hub" else SAE.load_from_disk(place)
        metadata = {"class": type(sae).__name__, "normalize": sae.cfg.normalize_activations, **sae.cfg.metadata.to_dict()}
    with torch.no_grad():
        acts = sae.encode(torch.from_numpy(np.load(x)))
        recon = sae.decode(acts)
    np.savez(out, acts=acts.numpy(), recon=recon.numpy())
    return metadata


if __name__ == "__main__":
    print(json.dumps([read(**job) for job in json.loads(Path(sys.argv[1]).read_text())]))
