"""A model as an ONNX file: preprocessing, network and reduction to ids in one graph, checked against torch."""
