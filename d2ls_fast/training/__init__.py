"""Training and scoring: settings, the Lightning module, the run, the confusion matrix."""
