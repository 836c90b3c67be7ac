"""What people run beside the pipeline: the command `verse`."""
