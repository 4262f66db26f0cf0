"""Trained models as files that run elsewhere: torch.export programs, AOTInductor packages, ONNX."""
