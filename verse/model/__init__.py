"""The language model: opened, prompted, adapted, fitted into memory, spread over processes."""
