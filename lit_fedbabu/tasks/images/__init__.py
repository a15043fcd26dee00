"""Image classification: where images come from, how they are dealt to clients, and what is measured."""
