"""The names that ``import minexp`` offers, and the module that defines each."""

PUBLIC = {
    "Explanation": "explain",
    "check_mask": "sufficiency",
    "load_model": "models",
    "Classifier": "classifier",
    "wrap": "classifier",
    "load_image": "images",
    "ExplainConfig": "config",
    "LossWeights": "config",
    "configure": "config",
    "preset": "config",
    "PRESETS": "config",
    "find_circuit": "circuit",
}
