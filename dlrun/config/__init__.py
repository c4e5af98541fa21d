"""From words to checked settings: the only room that knows Hydra. No torch."""
