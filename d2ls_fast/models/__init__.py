"""The D2LS model: backbones, head, checkpoints."""
