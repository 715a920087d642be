"""Serves the fused model over HTTP: ``bentoml serve services.inference:Inference``, or `sfumato serve`."""
