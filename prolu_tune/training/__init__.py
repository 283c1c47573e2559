"""One trial's training: batches in, autoencoder and metrics out; needs torch alone."""
