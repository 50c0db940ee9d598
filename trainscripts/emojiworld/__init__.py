"""The emoji world: sliders measured on rendered pictures whose truth is known."""
