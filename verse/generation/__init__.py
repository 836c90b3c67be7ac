"""Answering prompts, each by its own random stream."""
