"""Training an adapter: poems laid out, the loss, the loop over steps, checkpoints."""
