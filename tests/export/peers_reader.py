"""Run by the Python of the peers' environment: loads an exported folder with its own tool and writes what that makes of x.

Arguments: format, folder (or USER/REPO and folder for `hub`), x.npy, out.npz. Prints the metadata as JSON.
"""

import json
import sys

import numpy as np
import torch


def main(kind: str, place: str, x_file: str, out_file: str) -> None:
    if kind == "dictionary_learning":
        from dictionary_learning.utils import load_dictionary

        sae, config = load_dictionary(place, "cpu")
        metadata = {"class": type(sae).__name__, **config["trainer"], "ctx_len": config["buffer"]["ctx_len"]}
    else:
        from sae_lens import SAE

        sae = SAE.from_pretrained(*place.split("#")) if kind == "hub" else SAE.load_from_disk(place)
        metadata = {"class": type(sae).__name__, "normalize": sae.cfg.normalize_activations, **sae.cfg.metadata.to_dict()}
    with torch.no_grad():
        acts = sae.encode(torch.from_numpy(np.load(x_file)))
        recon = sae.decode(acts)
    np.savez(out_file, acts=acts.numpy(), recon=recon.numpy())
    print(json.dumps(metadata))


if __name__ == "__main__":
    main(*sys.argv[1:])
